"""The fastest setting of a served model that holds a p99 on this machine."""
