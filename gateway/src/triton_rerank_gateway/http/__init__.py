"""HTTP itself: the app and its paths, its server, and the bounds of a connection."""
