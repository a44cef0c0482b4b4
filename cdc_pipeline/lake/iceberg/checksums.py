"""CRC-32 of a table's files: counted as they are written, recorded with a snapshot, read again.

Iceberg itself stores only sizes. Up to `LIMIT` sums are a property of the snapshot's summary. The
summaries of all snapshots are in the metadata file, which is read and written whole, so more sums
are in a list: an object beside the table, which several snapshots may name.
"""

import gzip
import json
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.metadata_file import PROPERTY
from cdc_pipeline.lake.storage.store import Store

CHECKSUMS = f"{PROPERTY}crc32"
"""Summary property of a snapshot without a list: sums of its files, in order of path.

In hex, separated by commas; empty: unknown. Delete files are included.
"""

CHECKSUM_LIST = f"{PROPERTY}crc32_list"
"""Summary property of a snapshot with a list: the address of the list.

The list is compressed JSON: sums in hex by path as in the manifests; empty: unknown. It has paths
that left the table, too. A property of its own, because older versions expect the sum of every file
in `CHECKSUMS`; without that they treat the sums as unknown.
"""

UNLISTED_CHECKSUMS = f"{PROPERTY}crc32_unlisted"
"""Summary property of a snapshot with a list: as `CHECKSUMS`, of the files not in the list."""

LIMIT = 500
"""Sums that are in a summary at most, of 9 bytes each.

50 snapshots with as many make 0.2 MB of metadata. A data file is full at 128 MB, so tables below
64 GB have no list. Row deltas merge their files at eight of a size, so they do not reach the limit
and name the list of the last whole write for as long as most of its files live.
"""


class LostChecksumsError(LakeError):
    """A list of checksums is missing or damaged; the sums of its files are unknown."""


@dataclass(frozen=True)
class Checksums:
    """Recorded sums of a version's files, by path as in the manifests; None: not recorded.

    `address`: of its list, which has the paths `listed`; None: it has no list.
    """

    sums: Mapping[str, int | None]
    address: str | None = None
    listed: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class ChecksumFolder:
    """The folder of a table's lists in the lake's store. A list never changes."""

    store: Store
    folder: str

    def record(
        self, sums: Mapping[str, int | None], before: Checksums | None = None
    ) -> dict[str, str]:
        """Return the summary properties for these files, having written a list if they need one.

        `before`: of the version that was changed, whose list is named again if it has enough.
        """
        if len(sums) <= LIMIT:
            return {CHECKSUMS: _line(sums)}
        listed = before.listed if before else frozenset()
        unlisted = {path: crc32 for path, crc32 in sums.items() if path not in listed}
        if before and before.address and len(unlisted) <= LIMIT:
            return {CHECKSUM_LIST: before.address, UNLISTED_CHECKSUMS: _line(unlisted)}
        key = f"{self.folder}{secrets.token_hex(8)}.json.gz"
        text = json.dumps({path: _hex(sums[path]) for path in sorted(sums)})
        self.store.write(key, gzip.compress(text.encode(), mtime=0))
        return {CHECKSUM_LIST: self.store.uri(key), UNLISTED_CHECKSUMS: ""}


def checksum_folder(database: str, name: str) -> str:
    """Return the folder of a table's lists, relative to the lake's root.

    It is not below the table's folder, as descriptions are not, and not the folder of these, where
    maintenance of older versions removes what it does not know.
    """
    return f"_cdc/{database}/table-checksums/{name}/"


def known_checksums(files: Sequence[DataFile], snapshot: Snapshot | None, io: FileIO) -> Checksums:
    """Return the recorded checksums of all files of a version.

    Raises `LostChecksumsError` if the list cannot be read, errors of the file system as they are.
    """
    properties = _summary(snapshot)
    paths = sorted(file.file_path for file in files)
    address = properties.get(CHECKSUM_LIST)
    if address is None:
        return Checksums(_by_path(paths, properties.get(CHECKSUMS)))
    listed = _read_list(io, address)
    unlisted = [path for path in paths if path not in listed]
    rest = _by_path(unlisted, properties.get(UNLISTED_CHECKSUMS))
    sums = {path: listed[path] if path in listed else rest[path] for path in paths}
    return Checksums(sums, address, frozenset(listed))


def no_checksums(files: Sequence[DataFile]) -> Checksums:
    """Return unknown checksums of all files."""
    return Checksums({file.file_path: None for file in files})


def checksum_lists(table: Table) -> Iterator[str]:
    """Yield the addresses of the lists of all versions."""
    for snapshot in table.metadata.snapshots:
        address = _summary(snapshot).get(CHECKSUM_LIST)
        if address is not None:
            yield address


class ChecksumIO:
    """The part of PyIceberg's FileIO that writes files, with a CRC-32 of each by its path."""

    def __init__(self, io: Any) -> None:
        self._io = io
        self.sums: dict[str, int] = {}

    def new_output(self, location: str) -> "_ChecksumOutput":
        """Return a file whose checksum is counted as it is written."""
        return _ChecksumOutput(self._io.new_output(location), self.sums)


class _ChecksumOutput:
    def __init__(self, file: Any, sums: dict[str, int]) -> None:
        self._file = file
        self._sums = sums

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __len__(self) -> int:
        return len(self._file)

    def create(self, overwrite: bool = False) -> "_ChecksumStream":
        return _ChecksumStream(self._file.create(overwrite), self._file.location, self._sums)


class _ChecksumStream:
    """A Parquet file being written, from its first byte to its last."""

    def __init__(self, stream: Any, path: str, sums: dict[str, int]) -> None:
        self._stream = stream
        self._path = path
        self._sums = sums
        sums[path] = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "_ChecksumStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, data: Any) -> int:
        self._sums[self._path] = zlib.crc32(data, self._sums[self._path])
        return self._stream.write(data)


def _summary(snapshot: Snapshot | None) -> Mapping[str, str]:
    summary = snapshot.summary if snapshot else None
    return summary.additional_properties if summary else {}


def _hex(crc32: int | None) -> str:
    return "" if crc32 is None else f"{crc32:08x}"


def _number(text: str) -> int | None:
    return int(text, 16) if text else None


def _line(sums: Mapping[str, int | None]) -> str:
    return ",".join(_hex(sums[path]) for path in sorted(sums))


def _by_path(paths: Sequence[str], line: str | None) -> dict[str, int | None]:
    texts = line.split(",") if line else [""] * len(paths)
    return {path: _number(text) for path, text in zip(paths, texts, strict=True)}


def _read_list(io: FileIO, address: str) -> dict[str, int | None]:
    try:
        with io.new_input(address).open() as stream:
            data = stream.read()
    except FileNotFoundError as error:
        raise LostChecksumsError(f"the list of checksums {address} is missing") from error
    try:
        # GZIP has a checksum of its own, so damage is never read as other sums.
        texts = json.loads(gzip.decompress(data))
        return {path: _number(text) for path, text in texts.items()}
    except (OSError, EOFError, zlib.error, ValueError, AttributeError) as error:
        raise LostChecksumsError(f"the list of checksums {address} is damaged") from error
