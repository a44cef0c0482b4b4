"""Names: SQL-safe table names, and every object key of the lake, relative to its root."""

import re
from dataclasses import dataclass
from datetime import date

LAKE_ZONES = ("_cdc/", "dynamo-cdc/", "dynamo-export/", "iceberg/")
"""Folders directly under the lake's root, reserved for this project."""

OWNERS = "an e-mail address whose domain ends in 2 to 7 letters, or 'team:name'"
"""Values that `is_owner` accepts, for messages."""

MAX_COLUMN_NAME = 255
"""Longest column name in Glue, in characters (its API reference: `Column.Name`)."""

_OBJECT_NAME = re.compile(r"(\d{12})-([0-9a-f]{16})\.[a-z.]+")
_UNNUMBERED = ("/compacted-", "/heal-", "/backfill-")


def safe_name(table_name: str) -> str:
    """Return the SQL-safe name of a DynamoDB table: `[a-z0-9_]`, no A-Z, dots or dashes."""
    name = re.sub(r"[^a-z0-9_]", "_", table_name.lower())
    return f"t_{name}" if name[:1].isdigit() else name


def is_owner(value: str) -> bool:
    """Whether Dagster accepts a value as an asset's owner: an e-mail address or `team:name`.

    Rule for addresses as in Dagster 1.13: top-level domains of 2 to 7 letters.
    """
    address = r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}"
    return bool(re.fullmatch(rf"team:[\w-]+|{address}", value))


def day_folder(day: date) -> str:
    """Return the Hive folder of a day, with a trailing slash."""
    return f"year={day.year:04d}/month={day.month:02d}/day={day.day:02d}/"


def split_s3(uri: str) -> tuple[str, str]:
    """Split an `s3://` URI into bucket and key (or prefix); the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def object_name(n: int, nonce: str, suffix: str = "parquet") -> str:
    """Return the file name of an object of log entry `n`, written under `nonce`."""
    return f"{object_prefix(n)}{nonce}.{suffix}"


def object_prefix(n: int) -> str:
    """Return the beginning of the names of all objects of log entry `n`."""
    return f"{n:012d}-"


def entry_number(key: str) -> int | None:
    """Parse the log entry number from an object's name; None: not a name of this project."""
    match = _OBJECT_NAME.fullmatch(key.rpartition("/")[2])
    return int(match[1]) if match else None


def is_landing_name(key: str) -> bool:
    """Whether a key of the landing zone or quarantine has a name of this project (`TablePaths`)."""
    return entry_number(key) is not None or any(part in key for part in _UNNUMBERED)


@dataclass(frozen=True)
class TablePaths:
    """Where one table lives in the lake (docs/architecture.md), relative to its root."""

    database: str
    table: str

    @property
    def landing(self) -> str:
        """Landing zone: Hive-partitioned Parquet by write day."""
        return f"dynamo-cdc/{self.database}/{self.table}/"

    @property
    def quarantine(self) -> str:
        """Unreadable records, by kind of error."""
        return f"dynamo-cdc/{self.database}/error/{self.table}/"

    @property
    def state(self) -> str:
        """The capture log and all other state."""
        return f"_cdc/{self.database}/{self.table}/"

    @property
    def entries(self) -> str:
        """Numbered entries of the capture log."""
        return f"{self.state}log/"

    @property
    def summaries(self) -> str:
        """Summaries of the capture log."""
        return f"{self.state}summaries/"

    @property
    def heartbeat(self) -> str:
        """Key of the heartbeat of the capture log."""
        return f"{self.state}heartbeat.json"

    @property
    def staging(self) -> str:
        """Converted files of exports that are not staged yet, one folder for each export."""
        return f"{self.state}staging/"

    @property
    def work(self) -> str:
        """What workers hand on to each other, one folder for each piece of work."""
        return f"{self.state}work/"

    @property
    def backups(self) -> str:
        """Unchanged copies of records, where another program writes them."""
        return f"dynamo-backup/{self.database}/{self.table}/"

    @property
    def exports(self) -> str:
        """The S3 prefix under which DynamoDB writes PITR exports of this table."""
        return f"dynamo-export/{self.database}/{self.table}"

    def landed(self, day: date, n: int, nonce: str) -> str:
        """Key of the landing object of one day in log entry `n`."""
        return f"{self.landing}{day_folder(day)}{object_name(n, nonce)}"

    def compacted(self, day: date, first: int, last: int, nonce: str) -> str:
        """Key of an object with the landed rows of one day from entries `first` to `last`.

        Its name contains no entry of its own: capture may run at the same time, and the race for
        the log decides which entry makes the object valid.
        """
        name = f"compacted-{first:012d}-{last:012d}-{nonce}.parquet"
        return f"{self.landing}{day_folder(day)}{name}"

    def healed(self, day: date, gap: int, nonce: str) -> str:
        """Key of an object of one day with changes that heal the gap opened by entry `gap`."""
        return f"{self.landing}{day_folder(day)}heal-{gap:012d}-{nonce}.parquet"

    def backfilled(self, day: date, nonce: str) -> str:
        """Key of an object of one day that a backfill made from an export."""
        return f"{self.landing}{day_folder(day)}backfill-{nonce}.parquet"

    def quarantined(self, kind: str, day: date, n: int, nonce: str) -> str:
        """Key of the quarantine object of one day in log entry `n`."""
        return f"{self.quarantine}{kind}/{day_folder(day)}{object_name(n, nonce, 'jsonl')}"

    def entry(self, n: int) -> str:
        """Key of log entry `n`."""
        return f"{self.entries}{n:012d}.json"

    def summary(self, n: int) -> str:
        """Key of the summary of the log up to and including entry `n`."""
        return f"{self.summaries}{n:012d}.json"
