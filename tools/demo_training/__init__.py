"""Trains the demo model's delta again; `make demo-model` runs it. Not shipped."""
