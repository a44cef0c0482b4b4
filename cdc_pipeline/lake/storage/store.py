"""Object stores: what the lake needs of S3 or a local folder, and the local one."""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.objects import S3Store, StoredFile
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.core.errors import LakeError, SettingsError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.settings.model import Settings

TEMPORARY = "_cdc/tmp/"
"""Where a local lake's files are before they have their names."""


class Store(Protocol):
    """Whole objects by key relative to the lake root. Every method raises `LakeError`."""

    def uri(self, key: str) -> str:
        """The object's address for Iceberg and DuckDB."""
        ...

    def read(self, key: str) -> bytes | None:
        """The whole object, None if there is none."""
        ...

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        """`size` bytes of an object from `start` on, fewer at its end; None if there is none."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object, whole or not at all."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless there is one; False means there was one."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys under `prefix` in order, behind `after`."""
        ...

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """What lies under `prefix`, in any order."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are fine."""
        ...


class LocalStore:
    """A folder as an object store, durable: files and their folders are synced."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def uri(self, key: str) -> str:
        """A plain absolute path, which DuckDB, pyarrow and PyIceberg all take."""
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
        """See `Store`. A hard link fails where a rename would replace."""
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
            found = self._keys(prefix.rpartition("/")[0])
            keys = sorted(key for key in found if key.startswith(prefix) and key > after)
        yield from keys

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """See `Store`."""
        for key in self.list(prefix):
            with suppress(FileNotFoundError):
                found = (self.root / key).stat()
                yield StoredFile(key, found.st_size, found.st_mtime)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Store`."""
        for key in keys:
            with self._errors("deleting", key):
                (self.root / key).unlink(missing_ok=True)

    def _keys(self, folder: str) -> Iterator[str]:
        """All files below a folder, by their names alone: a log may have a million entries."""
        base = f"{folder}/" if folder else ""
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._keys(base + entry.name)
                else:
                    yield base + entry.name

    def _temporary(self, key: str, data: bytes) -> Path:
        _make_folder((self.root / key).parent)
        # Outside the data folders: a crash must not leave a file where readers list.
        scratch = self.root / TEMPORARY
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = scratch / secrets.token_hex(8)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LakeError(
                f"lake {self.root}: {doing} {key}: {error.strerror or error}",
                fix="check that the folder exists, is writable and has room",
            ) from error


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably: the name of a folder is data of its parent's."""
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


def open_store(settings: Settings, aws: AwsSession) -> Store:
    """The store that `lake` in the settings names."""
    if not settings.is_s3:
        return LocalStore(settings.lake_folder)
    bucket, prefix = split_s3(settings.lake)
    if not bucket:
        raise SettingsError(f"lake {settings.lake!r} names no bucket", fix="s3://bucket/prefix")
    return S3Store(aws, bucket, prefix, sse_parameters(settings.kms_key))
