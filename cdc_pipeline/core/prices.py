"""What AWS charges for what we ask of it: list prices of us-east-1 (DYNAMODB_CDC section 1)."""

EXPORT_USD_PER_GB = 0.10
"""Of a full export, by the size of the table; of an incremental one, by the changes processed."""

LEAST_EXPORT_BYTES = 10_000_000
"""What an incremental export is billed at least."""
