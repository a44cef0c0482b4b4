"""Setup: preflight, permissions, and tables taken into the settings."""
