"""EMR Serverless: applications, and job runs that are a local Spark."""
