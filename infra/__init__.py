"""What runs in AWS for the roads through Kinesis and Firehose: a Lambda function, a template."""
