"""Storage: object stores, the capture log, and landing objects."""
