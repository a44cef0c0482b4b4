"""What runs in AWS for Kinesis, its channels and Firehose: templates and a Lambda function."""
