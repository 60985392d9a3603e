"""What is to be seen of a request: its line in the log, metrics and spans."""
