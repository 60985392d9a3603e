"""Quality and speed of served rerankers, measured."""
