"""Use cases: drain streams, take snapshots. They know core, AWS and the lake, not Dagster."""
