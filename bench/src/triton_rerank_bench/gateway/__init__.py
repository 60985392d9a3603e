"""The HTTP gateway: what it costs over the client, and how it stands beside another server."""
