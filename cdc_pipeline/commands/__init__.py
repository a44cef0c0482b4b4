"""Commands of `cdc-pipeline`, one module per subject; registered by `cli`."""
