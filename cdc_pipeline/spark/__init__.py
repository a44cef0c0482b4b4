"""Work on Spark: how a run and its job talk; the job itself is in `spark.job`."""
