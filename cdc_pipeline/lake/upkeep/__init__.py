"""Upkeep of a lake: maintenance, verification, restoration, status."""
