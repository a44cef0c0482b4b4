"""S3 for DuckDB through pyarrow's client: DuckDB's own S3 extension needs a download."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import NativeFile
from pyarrow.fs import FileSystem


class DuckS3(ArrowFSWrapper):
    """pyarrow's S3 client as a read-only fsspec file system for DuckDB's `s3://` paths."""

    protocol = ("s3",)  # type: ignore[assignment]
    cachable = False

    def __init__(self, fs: FileSystem) -> None:
        super().__init__(fs)
        self._infos: dict[str, Any] = {}

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode != "rb":
            raise ValueError(f"{path}: mode {mode!r} is not supported; use 'rb'")
        return SharedFile(partial(self.fs.open_input_file, path), path)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Return exact paths as they are, without a request to S3 per file and view."""
        if any(char in path for char in "*?["):
            return super().glob(path, maxdepth, **kwargs)
        return [path]

    def info(self, path: str, **kwargs: Any) -> Any:
        """Return size and time, cached: DuckDB requests each alone, and files never change."""
        info = self._infos.get(path)
        if info is None:
            info = self._infos[path] = super().info(path, **kwargs)
        return info

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return path.removeprefix("s3://")


class SharedFile:
    """A file for several threads, each with its own position.

    DuckDB reads the row groups of one file from several threads through one handle, each by a
    `seek` and a `read`. With one position for all, a thread could get another one's bytes: an error
    or wrong rows. A failed read is retried once with the file opened again: the credentials from
    the start of a long query may have expired.
    """

    def __init__(self, open_file: Callable[[], NativeFile], path: str) -> None:
        self._open = open_file
        self._file = file = open_file()
        self._path = path
        self._size = file.size()
        self._thread = threading.local()

    def seek(self, position: int, whence: int = 0) -> int:
        """Set the thread's position, as `io.IOBase.seek`."""
        start = {0: 0, 1: self.tell(), 2: self._size}[whence]
        self._thread.position = start + position
        return self.tell()

    def tell(self) -> int:
        """Return the thread's position."""
        return getattr(self._thread, "position", 0)

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the file.

        Raises `OSError` for a short response: DuckDB would use old content of its buffer for the
        missing bytes.
        """
        position = self.tell()
        remaining = max(self._size - position, 0)
        expected = remaining if size < 0 else min(size, remaining)
        data = self._read_at(expected, position)
        if len(data) != expected:
            raise OSError(
                f"{self._path}: {len(data)} bytes instead of {expected} at {position} "
                f"of {self._size}; run it again"
            )
        self._thread.position = position + expected
        return data

    def _read_at(self, size: int, position: int) -> bytes:
        file = self._file
        try:
            return file.read_at(size, position)
        except OSError:
            if file.closed:
                raise
            self._file = reopened = self._open()
            return reopened.read_at(size, position)

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    @property
    def closed(self) -> bool:
        """Whether the file is closed, for all threads."""
        return self._file.closed

    def close(self) -> None:
        """Close the file for all threads."""
        self._file.close()
