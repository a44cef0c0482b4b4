"""Records of changes, compiled: `records` is the interface, `envelopes` the scan."""
