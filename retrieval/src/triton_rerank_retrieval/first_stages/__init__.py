"""First stages: each finds candidates by `search(query, k, filter)`."""
