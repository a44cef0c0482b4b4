"""The local DynamoDB: streams, Kinesis destinations, the journal of changes, recovery."""
