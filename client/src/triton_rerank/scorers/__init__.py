"""What scores pairs: one Protocol, one file an implementation."""
