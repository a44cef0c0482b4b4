"""What runs on Spark: the job's loop, and the tasks that it distributes."""
