"""Repair: gaps and past days, filled from exports or from what the stream still holds."""
