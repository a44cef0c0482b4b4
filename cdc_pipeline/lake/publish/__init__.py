"""Published tables: cdc, current_state, ttl_archive, entities, baselines, and their schemas."""
