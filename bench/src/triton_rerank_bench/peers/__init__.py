"""Peers side by side: other libraries score the same texts with the same weights, each in an environment of its own."""
