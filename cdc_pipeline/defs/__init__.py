"""The Dagster layer: thin bodies that call use cases, and metadata with numbers for plots."""
