"""Reconciliation: compares the lake with its source and repairs it."""
