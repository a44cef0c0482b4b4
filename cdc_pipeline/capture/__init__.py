"""Capture: from a table's stream, or its objects in S3, to the landing zone. No Dagster here."""
