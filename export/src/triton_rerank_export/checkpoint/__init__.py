"""What a checkpoint says of itself: where it comes from, its files, its family, its labels, its prompt."""
