"""Reconciliation: the lake against its source."""
