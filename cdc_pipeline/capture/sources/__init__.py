"""Sources of changes: streams and delivered objects, and the parsers of their records."""
