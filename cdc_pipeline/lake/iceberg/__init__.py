"""Iceberg tables: catalogues, commits, and appends."""
