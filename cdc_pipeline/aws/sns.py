"""Amazon SNS: messages to a topic."""

from cdc_pipeline.aws.client.session import AwsSession, aws_errors

_SUBJECT = 100  # characters; printable ASCII only (SNS API reference, Publish)


def publish(aws: AwsSession, topic_arn: str, subject: str, text: str) -> None:
    """Publish one message; raises `SourceError`. AWS accepts 256 KB of text."""
    ascii_subject = subject.encode("ascii", "replace").decode()[:_SUBJECT]
    with aws_errors(f"publishing to {topic_arn}"):
        aws.client("sns").publish(TopicArn=topic_arn, Subject=ascii_subject, Message=text)
