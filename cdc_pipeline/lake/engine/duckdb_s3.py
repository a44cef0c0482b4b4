"""S3 for DuckDB through pyarrow's client: its own S3 extension would have to be downloaded."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import NativeFile
from pyarrow.fs import FileSystem


class DuckS3(ArrowFSWrapper):
    """pyarrow's S3 client as the fsspec file system that DuckDB takes for `s3://`, to read."""

    protocol = ("s3",)  # type: ignore[assignment]
    cachable = False

    def __init__(self, fs: FileSystem) -> None:
        super().__init__(fs)
        self._infos: dict[str, Any] = {}

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode != "rb":
            raise ValueError(f"{path}: the lake's files are only read here, not opened as {mode!r}")
        return SharedFile(partial(self.fs.open_input_file, path), path)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Our own paths are exact: asking S3 for each would cost a request per file and view."""
        if any(sign in path for sign in "*?["):
            return super().glob(path, maxdepth, **kwargs)
        return [path]

    def info(self, path: str, **kwargs: Any) -> Any:
        """DuckDB asks for size and time apart; the lake's files never change."""
        found = self._infos.get(path)
        if found is None:
            found = self._infos[path] = super().info(path, **kwargs)
        return found

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return path.removeprefix("s3://")


class SharedFile:
    """A file for several threads at once, each at its own position.

    DuckDB reads the row groups of one file from several threads through one handle, and a read is
    a `seek` and a `read` here: with one position for all, a thread now and then gets the bytes of
    another, that is, an error or wrong rows. A read that fails is tried again with the file opened
    anew: credentials of the time when a long query began may have ended since.
    """

    def __init__(self, open_file: Callable[[], NativeFile], path: str) -> None:
        self._open = open_file
        self._file = file = open_file()
        self._path = path
        self._size = file.size()
        self._here = threading.local()

    def seek(self, position: int, whence: int = 0) -> int:
        """This thread reads from `position` next, counted as `io.IOBase.seek` does."""
        start = {0: 0, 1: self.tell(), 2: self._size}[whence]
        self._here.position = start + position
        return self.tell()

    def tell(self) -> int:
        """Where this thread reads next."""
        return getattr(self._here, "position", 0)

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end of the file.

        Raises `OSError` for an answer cut short: DuckDB would take what its buffer held before
        for the rest.
        """
        position = self.tell()
        left = max(self._size - position, 0)
        wanted = left if size < 0 else min(size, left)
        found = self._read_at(wanted, position)
        if len(found) != wanted:
            raise OSError(
                f"{self._path}: {len(found)} bytes instead of {wanted} at {position} "
                f"of {self._size}; run it again"
            )
        self._here.position = position + wanted
        return found

    def _read_at(self, size: int, position: int) -> bytes:
        file = self._file
        try:
            return file.read_at(size, position)
        except OSError:
            if file.closed:
                raise
            self._file = again = self._open()
            return again.read_at(size, position)

    def seekable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Always."""
        return True

    @property
    def closed(self) -> bool:
        """For all threads."""
        return self._file.closed

    def close(self) -> None:
        """For all threads."""
        self._file.close()
