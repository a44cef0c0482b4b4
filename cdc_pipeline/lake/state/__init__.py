"""The published state of a table: its base, and the ways to bring it up to date."""
