"""The image's healthcheck: status 0 if Triton answers over gRPC that it is ready, else 1 and a line that says why not.

Triton is ready when every model is loaded and warmed up. The question is gRPC's standard health check, by hand: one
empty message out, one enumeration back, which spares the image a protobuf package.
"""

from __future__ import annotations

import sys

import grpc

_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # field 1 is 1
_TIMEOUT_S = 3.0


def fault(target: str) -> str | None:
    """What keeps the server at ``host:port`` from being ready, or None."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = channel.unary_unary(_METHOD)(b"", timeout=_TIMEOUT_S)
        except grpc.RpcError as exc:
            return f"{target}: {exc.code().name}: {exc.details()}"
    return None if answer == _SERVING else f"{target}: not ready"


if __name__ == "__main__":
    sys.exit(fault(sys.argv[1]))
