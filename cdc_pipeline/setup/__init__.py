"""Setup: preflight, permissions, and adding tables to the settings."""
