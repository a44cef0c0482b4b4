"""Decisions without effects: what to export, erase, allow or wait for, from plain values."""
