"""Definitions of lake-wide operations: healing, maintenance, reconciliation, Glue, alarms."""
