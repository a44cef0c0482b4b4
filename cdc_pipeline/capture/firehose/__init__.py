"""Capture from objects that Firehose or a Kinesis channel wrote to S3."""
