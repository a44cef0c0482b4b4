"""Deliveries of the local Firehose and of Kinesis channels."""
