"""Repair: gaps and past days, filled from exports or from records still in the stream."""
