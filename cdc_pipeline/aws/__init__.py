"""Thin boto3 adapters, one file per service, independent of lakes and Dagster."""
