"""Capture from shards, of DynamoDB Streams or Kinesis."""
