"""Transformations as SQL and Arrow: they know core and an engine, neither AWS nor the lake."""
