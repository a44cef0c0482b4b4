"""Erasure: removes one item from the lake, its exports and earlier versions."""
