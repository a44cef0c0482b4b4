"""Erasing an item from PITR exports: data files without it, and manifests that match them.

Files and manifests are DynamoDB's; we rewrite what names the item and nothing else. Manifests
first, with the counts and checksums that the new data files will have: after a crash in between
the item is still found, and everything written once more to the same bytes.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cdc_pipeline.core.erasure import ItemTrace
from cdc_pipeline.core.log_parts import Removed
from cdc_pipeline.lake.erase import Place, find_item
from cdc_pipeline.lake.holding import without_lines
from cdc_pipeline.lake.store import Store

_FILES, _SUMMARY = "manifest-files.json", "manifest-summary.json"


def erase_exported(place: Place, trace: ItemTrace) -> Removed:
    """Rewrite the data files of full and incremental exports that hold the item."""
    found = find_item([place], trace)
    data = {holding.key: _rewritten(place.store, holding.key, trace) for holding in found}
    if data:
        for key in list(place.store.list(place.prefix)):
            if key.endswith(_FILES):
                _correct(place.store, key, data)
    for key, body in data.items():
        place.store.write(key, body)
    return Removed("exports", len(found), sum(holding.rows for holding in found))


def _rewritten(store: Store, key: str, trace: ItemTrace) -> bytes:
    return without_lines(store.read(key) or b"", trace)


def _correct(store: Store, key: str, data: Mapping[str, bytes]) -> None:
    """Correct one manifest of data files, and its summary's count, if it names any of them."""
    lines = [json.loads(line) for line in (store.read(key) or b"").splitlines() if line.strip()]
    changed = False
    for line in lines:
        for name, body in data.items():
            if _names(line["dataFileS3Key"], name):
                line |= {"itemCount": _lines(body), "md5Checksum": _md5(body), "etag": _etag(body)}
                changed = True
    if not changed:
        return
    _write(store, key, "".join(f"{_json(line)}\n" for line in lines).encode())
    summary_key = key.removesuffix(_FILES) + _SUMMARY
    summary = json.loads(store.read(summary_key) or b"{}")
    summary["itemCount"] = sum(line["itemCount"] for line in lines)
    _write(store, summary_key, _json(summary).encode())


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
