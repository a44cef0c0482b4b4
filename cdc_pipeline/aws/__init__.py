"""Thin adapters of botocore, one file per service, independent of lakes and Dagster."""
