"""Queries: connections, views, time travel, and SQL for other engines."""
