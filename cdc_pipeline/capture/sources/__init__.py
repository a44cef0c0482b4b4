"""Sources of changes: what a stream or delivered objects are, and the parsers of their records."""
