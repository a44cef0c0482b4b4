"""Erasure: one item out of everything that holds it."""
