"""Transports: the ways of changes into the lake, and the view types of streams."""

from typing import Literal

Transport = Literal["dynamodb_streams", "kinesis", "firehose", "kinesis_channel"]
"""Spelling in settings, rows, log entries and on the command line."""

DYNAMODB_STREAMS: Transport = "dynamodb_streams"
KINESIS: Transport = "kinesis"
FIREHOSE: Transport = "firehose"
KINESIS_CHANNEL: Transport = "kinesis_channel"
TRANSPORTS: tuple[Transport, ...] = (DYNAMODB_STREAMS, KINESIS, FIREHOSE, KINESIS_CHANNEL)

IN_FILES = (FIREHOSE, KINESIS_CHANNEL)
"""Transports whose changes AWS writes into S3 objects, which do not expire."""
BY_TIME = (KINESIS, *IN_FILES)
"""Transports with changes ordered by write time."""

EXPORT = "export"
"""Value in place of a transport: the row came from a line of an export."""
READ = "read"
"""Value in place of a transport: the row holds an item that was read by its key."""
BASELINE = "baseline"
"""Value in place of a transport in rows of `cdc` that show the state of a later baseline."""

NEW_AND_OLD_IMAGES = "NEW_AND_OLD_IMAGES"
MIRROR_VIEWS = (NEW_AND_OLD_IMAGES, "NEW_IMAGE")
"""Stream view types with the new item in each event."""
