"""Work on Spark: how a run and its job talk, and what a cluster needs; the job is `spark.job`."""
