"""A store that counts its calls, by kind."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cdc_pipeline.lake.storage.store import LocalStore


class CountingStore(LocalStore):
    """A local lake that counts what is asked of it; `calls`: shared by several, or its own."""

    def __init__(self, root: Path, calls: Counter[str] | None = None) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter() if calls is None else calls

    def read(self, key: str) -> bytes | None:
        self.calls["read"] += 1
        return super().read(key)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self.calls["list"] += 1
        return super().list(prefix, after)

    def write(self, key: str, data: bytes) -> None:
        self.calls["write"] += 1
        super().write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self.calls["create"] += 1
        return super().create(key, data)
