"""The commands demo, dev and sandbox on a local AWS; their tables, traffic and settings."""
