"""Exports to S3 of the local DynamoDB."""
