"""What both clients and every scorer stand on: a call from its arguments to its result. No I/O, and no grpc."""
