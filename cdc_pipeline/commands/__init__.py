"""Commands of `cdc-pipeline`, one module for each subject; `cli` registers them."""
