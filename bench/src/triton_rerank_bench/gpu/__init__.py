"""The served model on a GPU: its fastest setting, and sentence-transformers beside it on the same device."""
