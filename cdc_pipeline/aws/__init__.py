"""Thin boto3 adapters, one file per service. They know AWS and nothing of lakes or Dagster."""
