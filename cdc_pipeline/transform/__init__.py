"""Transformations as SQL and Arrow; they depend on core and an engine, not on AWS or the lake."""
