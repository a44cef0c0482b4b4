"""Snapshots: a full export becomes the baseline of a generation."""
