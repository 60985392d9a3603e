"""The client as a component of other frameworks, each in a module of its own behind the extra of its name.

All of them keep the documents' order, number and duplicates as `RerankClient.rerank` returns them, hand back copies so
that the caller's metadata stays as it was, and raise the client's own errors.

Attributes:
    DEGRADED_KEY: metadata key that every document of a degraded result has, and no other. Its value says why, and names
        servers: a log's business, not an end user's.
"""

DEGRADED_KEY = "rerank_degraded"
