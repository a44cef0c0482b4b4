"""The single checks of preflight, and what they find."""
