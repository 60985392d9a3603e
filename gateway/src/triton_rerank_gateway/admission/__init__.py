"""Who and what is let in: keys, the bounds of a body, and whose turn it is."""
