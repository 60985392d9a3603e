"""What is going on: `MeteredScorer`, `TracedScorer`, `ServersCollector`, and the health of a server."""
