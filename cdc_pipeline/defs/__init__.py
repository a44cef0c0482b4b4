"""The Dagster layer: thin bodies that call capture and lake, and numbers that plot."""
