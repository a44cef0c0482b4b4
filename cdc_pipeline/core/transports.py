"""Transports: the ways in which changes come to the lake, and what each view type of them holds."""

from typing import Literal

Transport = Literal["dynamodb_streams", "kinesis", "firehose", "kinesis_channel"]
"""As settings, rows, log entries and the command line spell them."""

DYNAMODB_STREAMS: Transport = "dynamodb_streams"
KINESIS: Transport = "kinesis"
FIREHOSE: Transport = "firehose"
KINESIS_CHANNEL: Transport = "kinesis_channel"
TRANSPORTS: tuple[Transport, ...] = (DYNAMODB_STREAMS, KINESIS, FIREHOSE, KINESIS_CHANNEL)

IN_FILES = (FIREHOSE, KINESIS_CHANNEL)
"""Transports whose changes AWS writes into objects of S3, which do not expire."""
BY_TIME = (KINESIS, *IN_FILES)
"""Transports whose changes are ordered by their write times."""

EXPORT = "export"
"""In place of a transport in rows that came from a line of an export."""
READ = "read"
"""In place of a transport in rows that hold an item as it was read by its key."""
BASELINE = "baseline"
"""In place of a transport in rows of `cdc` that show what a later baseline shows."""

NEW_AND_OLD_IMAGES = "NEW_AND_OLD_IMAGES"
MIRROR_VIEWS = (NEW_AND_OLD_IMAGES, "NEW_IMAGE")
"""Stream view types whose events hold the new item."""
