"""Erasing an item from PITR exports: data files without it, and manifests that match them.

Files and manifests are DynamoDB's; we rewrite what names the item and nothing else. Manifests
first, with the counts and checksums that the new data files will have: after a crash in between
the item is still found, and everything written once more to the same bytes.

A damaged export stays a damaged one: a manifest is corrected only where it agreed with the file, a
file that cannot be read to its end is deleted, and a manifest that is none is left alone.
"""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.core.log.entries import Removed
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.erase.files import without_lines
from cdc_pipeline.erase.lake import Place, find_item
from cdc_pipeline.lake.storage.store import Store

_FILES, _SUMMARY = "manifest-files.json", "manifest-summary.json"


def erase_exported(place: Place, trace: ItemTrace) -> Removed:
    """Rewrite the data files of full and incremental exports that hold the item."""
    found = find_item([place], trace)
    data = {holding.key: _rewritten(place.store, holding.key, trace) for holding in found}
    if data:
        for key in list(place.store.list(place.prefix)):
            if key.endswith(_FILES):
                _correct(place.store, key, data)
    for key, rewritten in data.items():
        if rewritten is None:
            place.store.delete([key])
        else:
            place.store.write(key, rewritten.body)
    return Removed("exports", len(found), sum(holding.rows for holding in found))


@dataclass(frozen=True)
class _Rewritten:
    """A data file without the item. `former_md5`: of the file as it was."""

    former_md5: str
    body: bytes


def _rewritten(store: Store, key: str, trace: ItemTrace) -> _Rewritten | None:
    """None: it cannot be read to its end."""
    data = store.read(key) or b""
    try:
        return _Rewritten(_md5(data), without_lines(data, trace))
    except (OSError, EOFError, zlib.error):
        return None


def _correct(store: Store, key: str, data: Mapping[str, _Rewritten | None]) -> None:
    """Correct one manifest of data files, and its summary's count, if it names any of them."""
    lines = _documents(store, key)
    summary_key = key.removesuffix(_FILES) + _SUMMARY
    summaries = _documents(store, summary_key)
    if lines is None or summaries is None or len(summaries) != 1:
        return
    changed = False
    for line in lines:
        for name, file in data.items():
            if file is None or not _names(line["dataFileS3Key"], name):
                continue
            if line["md5Checksum"] == file.former_md5:
                body = file.body
                line |= {"itemCount": _lines(body), "md5Checksum": _md5(body), "etag": _etag(body)}
                changed = True
    total = sum(line["itemCount"] for line in lines)
    # A crash between the two left the count of the summary behind.
    if changed or (summaries[0]["itemCount"] != total and _agree(lines, data)):
        _write(store, key, "".join(f"{_json(line)}\n" for line in lines).encode())
        _write(store, summary_key, _json(summaries[0] | {"itemCount": total}).encode())


def _agree(lines: list[dict[str, Any]], data: Mapping[str, _Rewritten | None]) -> bool:
    """Whether a manifest names rewritten files as they are going to be."""
    new = {_md5(file.body) for file in data.values() if file is not None}
    return any(line["md5Checksum"] in new for line in lines)


def _documents(store: Store, key: str) -> list[dict[str, Any]] | None:
    """The lines of a manifest; None where it is missing or not one."""
    try:
        lines = (store.read(key) or b"").splitlines()
        found = [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return None
    wanted = ("dataFileS3Key", "md5Checksum", "itemCount") if key.endswith(_FILES) else ()
    whole = all(isinstance(one, dict) and all(name in one for name in wanted) for one in found)
    return found if whole else None


def _names(said: str, key: str) -> bool:
    """Keys in manifests begin at the bucket's root or at the export's prefix; ours at the prefix.

    A data file's name is 26 random characters, so the ends tell.
    """
    return f"/{said}".endswith(f"/{key}") or key.endswith(f"/{said}")


def _write(store: Store, key: str, body: bytes) -> None:
    """A manifest and the checksum that lies beside it, under whichever name it has."""
    for suffix in (".md5", ".checksum"):
        for beside in (key.removesuffix(".json") + suffix, key + suffix):
            if store.read(beside) is not None:
                store.write(beside, _md5(body).encode())
    store.write(key, body)


def _lines(body: bytes) -> int:
    return sum(1 for line in gzip.decompress(body).splitlines() if line.strip())


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
