"""Upkeep of a lake: maintenance, verification, restoration, and status of its tables."""
