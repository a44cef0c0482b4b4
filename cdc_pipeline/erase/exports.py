"""Erasure from PITR exports: rewrites data files without the item, and their manifests.

Only files that hold the item, and the manifests of these, are rewritten. Manifests come first, with
the counts and checksums of the new data files: after a crash in between, the item is still found,
and the next run writes the same bytes again.

A damaged export stays damaged: a manifest is corrected only where it matched the file, a file that
cannot be read to its end is deleted, and an invalid manifest is left unchanged.
"""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.core.log.entries import RemovedRows
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.erase.files import without_lines
from cdc_pipeline.erase.places import SearchedPrefix, find_item
from cdc_pipeline.lake.storage.store import Store

_FILES, _SUMMARY = "manifest-files.json", "manifest-summary.json"


def erase_from_exports(place: SearchedPrefix, trace: ItemTrace) -> RemovedRows:
    """Rewrite the data files of full and incremental exports that hold the item."""
    holdings = find_item([place], trace)
    files = {holding.key: _rewritten(place.store, holding.key, trace) for holding in holdings}
    if files:
        for key in list(place.store.list(place.prefix)):
            if key.endswith(_FILES):
                _correct_manifest(place.store, key, files)
    for key, rewritten in files.items():
        if rewritten is None:
            place.store.delete([key])
        else:
            place.store.write(key, rewritten.body)
    return RemovedRows("exports", len(holdings), sum(holding.rows for holding in holdings))


@dataclass(frozen=True)
class _Rewritten:
    """A data file without the item. `former_md5`: checksum of the file with it."""

    former_md5: str
    body: bytes


def _rewritten(store: Store, key: str, trace: ItemTrace) -> _Rewritten | None:
    """Return the data file without the item; None: it cannot be read to its end."""
    data = store.read(key) or b""
    try:
        return _Rewritten(_md5(data), without_lines(data, trace))
    except (OSError, EOFError, zlib.error):
        return None


def _correct_manifest(store: Store, key: str, files: Mapping[str, _Rewritten | None]) -> None:
    """Correct a manifest of data files and its summary's count, if it names one of `files`."""
    lines = _documents(store, key)
    summary_key = key.removesuffix(_FILES) + _SUMMARY
    summaries = _documents(store, summary_key)
    if lines is None or summaries is None or len(summaries) != 1:
        return
    is_changed = False
    for line in lines:
        for name, file in files.items():
            if file is None or not _is_same_file(line["dataFileS3Key"], name):
                continue
            if line["md5Checksum"] == file.former_md5:
                body = file.body
                counts = {"itemCount": _count_lines(body)}
                line |= counts | {"md5Checksum": _md5(body), "etag": _etag(body)}
                is_changed = True
    total = sum(line["itemCount"] for line in lines)
    # After a crash between the two writes, the summary has the former count.
    if is_changed or (summaries[0]["itemCount"] != total and _has_new_files(lines, files)):
        _write_manifest(store, key, "".join(f"{_json(line)}\n" for line in lines).encode())
        _write_manifest(store, summary_key, _json(summaries[0] | {"itemCount": total}).encode())


def _has_new_files(lines: list[dict[str, Any]], files: Mapping[str, _Rewritten | None]) -> bool:
    """Whether a manifest has the checksum of a rewritten file already."""
    new = {_md5(file.body) for file in files.values() if file is not None}
    return any(line["md5Checksum"] in new for line in lines)


def _documents(store: Store, key: str) -> list[dict[str, Any]] | None:
    """Return the lines of a manifest; None: it is missing or invalid."""
    try:
        lines = (store.read(key) or b"").splitlines()
        documents = [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return None
    fields = ("dataFileS3Key", "md5Checksum", "itemCount") if key.endswith(_FILES) else ()
    is_valid = all(isinstance(d, dict) and all(name in d for name in fields) for d in documents)
    return documents if is_valid else None


def _is_same_file(manifest_key: str, key: str) -> bool:
    """Whether a manifest's key is the store's `key`, which is relative to the lake's prefix.

    Keys in manifests begin at the bucket's root or at the export's prefix. A data file's name is 26
    random characters, so comparing the ends is enough.
    """
    return f"/{manifest_key}".endswith(f"/{key}") or key.endswith(f"/{manifest_key}")


def _write_manifest(store: Store, key: str, body: bytes) -> None:
    """Write a manifest and its checksum file, under either of its two names."""
    for suffix in (".md5", ".checksum"):
        for checksum_key in (key.removesuffix(".json") + suffix, key + suffix):
            if store.read(checksum_key) is not None:
                store.write(checksum_key, _md5(body).encode())
    store.write(key, body)


def _count_lines(body: bytes) -> int:
    return sum(1 for line in gzip.decompress(body).splitlines() if line.strip())


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
