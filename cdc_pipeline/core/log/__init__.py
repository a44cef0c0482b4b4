"""The model of the capture log: entries, their state, shard lineage, generations, coverage."""
