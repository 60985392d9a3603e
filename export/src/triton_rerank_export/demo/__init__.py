"""The demo model: how it is put together, and what it was trained on."""
