"""Pairs that come back are not scored again: `CachedScorer`."""
