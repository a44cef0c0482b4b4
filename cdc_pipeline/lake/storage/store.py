"""Object stores: the protocol for S3 and local folders, and the store of a local folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cdc_pipeline.core.errors import LakeError, SettingsError
from cdc_pipeline.core.names import split_s3

if TYPE_CHECKING:
    from cdc_pipeline.aws.client.session import AwsSession
    from cdc_pipeline.aws.s3.objects import StoredFile
    from cdc_pipeline.settings.model import Settings

TEMPORARY = "_cdc/tmp/"
"""Folder of a local lake's files until they are renamed to their keys."""


class Store(Protocol):
    """Whole objects by key relative to the lake root. Every method raises `LakeError`."""

    def uri(self, key: str) -> str:
        """Return the object's URI for Iceberg and DuckDB."""
        ...

    def read(self, key: str) -> bytes | None:
        """Read the whole object; None: no such object."""
        ...

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        """Read `size` bytes from offset `start`, fewer at the end; None: no such object."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object atomically."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Create an object; False: it exists already and stays unchanged."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield keys with this prefix, sorted, those greater than `after`."""
        ...

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """Yield objects with this prefix, in any order, with size and time."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are no error."""
        ...


class LocalStore:
    """A local folder as an object store. Writes are durable: files and folders are synced."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def uri(self, key: str) -> str:
        """Return a plain absolute path, which DuckDB, pyarrow and PyIceberg all accept."""
        return str(self.root / key)

    def read(self, key: str) -> bytes | None:
        """See `Store`."""
        with self._errors("reading", key):
            try:
                return (self.root / key).read_bytes()
            except FileNotFoundError:
                return None

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        """See `Store`."""
        with self._errors("reading", key):
            try:
                with (self.root / key).open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        """See `Store`."""
        with self._errors("writing", key):
            self._temporary(key, data).rename(self.root / key)
            _sync_folder((self.root / key).parent)

    def create(self, key: str, data: bytes) -> bool:
        """See `Store`. Uses a hard link: it fails if the name exists, a rename would replace."""
        with self._errors("writing", key):
            temporary = self._temporary(key, data)
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            _sync_folder((self.root / key).parent)
            return True

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See `Store`."""
        with self._errors("listing", prefix):
            in_folder = self._keys(prefix.rpartition("/")[0])
            keys = sorted(key for key in in_folder if key.startswith(prefix) and key > after)
        yield from keys

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """See `Store`."""
        from cdc_pipeline.aws.s3.objects import StoredFile

        for key in self.list(prefix):
            with suppress(FileNotFoundError):
                stat = (self.root / key).stat()
                yield StoredFile(key, stat.st_size, stat.st_mtime)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store`."""
        for key in keys:
            with self._errors("deleting", key):
                (self.root / key).unlink(missing_ok=True)

    def _keys(self, folder: str) -> Iterator[str]:
        """Yield the keys below a folder without a stat per file: a log may have a million entries.

        Subfolders included.
        """
        base = f"{folder}/" if folder else ""
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._keys(base + entry.name)
                else:
                    yield base + entry.name

    def _temporary(self, key: str, data: bytes) -> Path:
        _make_folder((self.root / key).parent)
        # Outside the data folders: a crash must not leave a partial file where readers list.
        scratch = self.root / TEMPORARY
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = scratch / secrets.token_hex(8)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LakeError(
                f"lake {self.root}: {action} {key} failed: {error.strerror or error}",
                fix="check that the folder exists, is writable and has free space",
            ) from error


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents durably: a folder's name is data of its parent folder."""
    if folder.exists():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_s3(settings: Settings, aws: AwsSession) -> Store:
    """Open the store of a lake in S3."""
    from cdc_pipeline.aws.s3.objects import S3Store
    from cdc_pipeline.aws.s3.output import sse_parameters

    bucket, prefix = split_s3(settings.lake)
    if not bucket:
        raise SettingsError(
            f"lake {settings.lake!r} has no bucket name", fix="write lake: s3://bucket/prefix"
        )
    return S3Store(aws, bucket, prefix, sse_parameters(settings.kms_key))
