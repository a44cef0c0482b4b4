"""Measured comparisons with named peers, in one run: `make bench`."""
