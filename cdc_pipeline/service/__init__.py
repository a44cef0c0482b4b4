"""A server: all tables kept fresh by one process, pass by pass, beside Dagster or without it."""
