"""DuckDB over the lake: sessions, types, masking, the inputs of a fold, typed item tables."""
