"""Commands on a local AWS: demo, dev, sandbox; their tables, traffic and settings."""
