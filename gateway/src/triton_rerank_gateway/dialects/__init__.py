"""The dialects, one file each, and which paths speak which."""
