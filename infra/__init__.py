"""What runs in AWS for the transports through Kinesis and Firehose: a Lambda function, a template."""
