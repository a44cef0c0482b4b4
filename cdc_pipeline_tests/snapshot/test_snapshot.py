"""An export's files: every variant that AWS writes, all kinds of damage, and runs that were killed.

The export is a folder that stands for a bucket; its AWS calls are answered here.
"""

import base64
import gzip
import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdc_pipeline.aws import export
from cdc_pipeline.aws.export import ExportStatus, read_manifest, whole_lines
from cdc_pipeline.core.errors import ExportError, LakeError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.snapshot import export as exports
from cdc_pipeline.snapshot import items as exported
from cdc_pipeline.snapshot import snapshot, staging
from cdc_pipeline.transform import spool
from cdc_pipeline.transform.spool import Spooled
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

ROOT = Path(__file__).resolve().parents[2]
# What AWS writes for a partition without items: 20 bytes.
EMPTY = bytes.fromhex("1f8b08000000000000ff03000000000000000000")
EXPORT = "AWSDynamoDB/01768386096366-0a1b2c3d"


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _items(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"pk": {"S": f"k{n}"}, "n": {"N": str(n)}, "a": {"SS": ["b", "a"]}}
        for n in range(start, start + count)
    ]


def _gz(found: list[dict[str, Any]]) -> bytes:
    return gzip.compress(b"".join(json.dumps({"Item": i}).encode() + b"\n" for i in found))


@dataclass
class Bucket:
    """Objects by key, and which data files were read."""

    objects: dict[str, bytes] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    def open(self, _aws: object, _bucket: str, key: str) -> io.BytesIO | None:
        if key not in self.objects:
            return None
        if "/data/" in key:
            self.read.append(key.rpartition("/")[2])
        return io.BytesIO(self.objects[key])

    def write_export(
        self,
        files: dict[str, bytes],
        items: list[int],
        *,
        prefix: str = "exports/orders",
        prefix_in_keys: bool = True,
        checksum: str = "manifest-summary.md5",
        **summary: Any,
    ) -> ExportStatus:
        """A finished export with these data files; `summary` adds to or replaces its fields."""
        root = f"{prefix}/{EXPORT}" if prefix else EXPORT
        named = root if prefix_in_keys else EXPORT
        lines = [
            {
                "itemCount": n,
                "md5Checksum": _md5(d),
                "etag": "6fcd0c8ae13cb0bae3a29dd2df0b8e33-1",
                "dataFileS3Key": f"{named}/data/{name}",
            }
            for (name, d), n in zip(files.items(), items, strict=True)
        ]
        manifest = "".join(json.dumps(line) + "\n" for line in lines).encode()
        said: dict[str, Any] = {
            "version": "2020-06-30",
            "s3Prefix": prefix or None,
            "manifestFilesS3Key": f"{named}/manifest-files.json",
            "itemCount": sum(items),
            "outputFormat": "DYNAMODB_JSON",
        } | summary
        text = json.dumps(said).encode()
        self.objects |= {f"{root}/data/{name}": data for name, data in files.items()}
        self.objects |= {
            f"{root}/manifest-summary.json": text,
            f"{root}/{checksum}": _md5(text).encode(),
            f"{root}/manifest-files.json": manifest,
            f"{root}/{checksum.replace('summary', 'files')}": _md5(manifest).encode(),
        }
        return ExportStatus(
            f"arn:aws:dynamodb:us-east-1:0:table/orders/export/{EXPORT.rpartition('/')[2]}",
            "COMPLETED",
            "bucket",
            prefix,
            f"{root}/manifest-summary.json",
            "",
        )


@dataclass
class Setting:
    """A table with a stream, a local lake, and the export that DynamoDB answers with."""

    lake: Lake
    bucket: Bucket
    status: ExportStatus | None = None
    said: list[str] = field(default_factory=list)

    def take(self) -> snapshot.SnapshotResult:
        table = self.lake.settings.tables[0]
        return snapshot.take_snapshot(self.lake.table(table), context=RunContext(self.said.append))

    def items(self) -> list[str]:
        table = self.lake.iceberg.load("orders_snapshot")
        assert table is not None
        paths = data_files(table)
        return [text for p in paths for text in pq.read_table(p)["_item"].to_pylist()]

    def staged(self) -> list[str]:
        return list(self.lake.store.list("_cdc/cdc/orders/staging/"))


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    bucket = Bucket()
    with StreamsSimulator(clock=time.time) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=1)
        raw = {
            "lake": "lake",
            "region": "us-east-1",
            "handover_margin_seconds": 1,
            "export": {"bucket": "bucket"},
            "tables": [{"name": "orders"}],
        }
        settings = parse_settings(raw, tmp_path / "settings.yaml")
        lake = Lake(settings, session(sim), LocalStore(settings.lake_folder))
        made = Setting(lake, bucket)
        monkeypatch.setattr(export, "open_object", bucket.open)
        monkeypatch.setattr(snapshot, "request_export", lambda *_: "arn")
        monkeypatch.setattr(exports, "describe_export", lambda *_: made.status)
        yield made


def _texts(found: list[dict[str, Any]]) -> list[str]:
    by_key = sorted(found, key=lambda item: item["pk"]["S"])
    return [to_json(canonical_item(item)) for item in by_key]


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"prefix": ""},
        {"prefix_in_keys": False},
        {"checksum": "manifest-summary.checksum"},
        {"checksum": "manifest-summary.json.md5"},
        {"exportType": "FULL_EXPORT"},
        {  # what else a real summary says
            "exportArn": "arn:aws:dynamodb:us-east-1:0:table/orders/export/01768386096366-0a1b2c3d",
            "startTime": "2026-01-14T10:21:36.366Z",
            "endTime": "2026-01-14T10:27:10.108Z",
            "exportTime": "2026-01-14T10:21:35.000Z",
            "tableArn": "arn:aws:dynamodb:us-east-1:0:table/orders",
            "s3Bucket": "bucket",
            "s3SseAlgorithm": "AES256",
            "s3SseKmsKeyId": None,
            "billedSizeBytes": 0,
        },
    ],
    ids=str,
)
def test_variants_of_real_exports(setting: Setting, variant: dict[str, Any]) -> None:
    assert len(EMPTY) == 20
    found = _items(20)
    files = {"a.json.gz": _gz(found[:15]), "empty.json.gz": EMPTY, "b.json.gz": _gz(found[15:])}
    setting.status = setting.bucket.write_export(files, [15, 0, 5], **variant)
    result = setting.take()
    assert (result.items, result.files) == (20, 3)
    assert setting.items() == _texts(found)
    assert setting.said[-2] == "file 3 of 3: 20 of 20 items converted"
    assert setting.staged() == []


@pytest.mark.parametrize("files", [{}, {"a.json.gz": EMPTY}], ids=["no file", "empty file"])
def test_an_export_without_items(setting: Setting, files: dict[str, bytes]) -> None:
    setting.status = setting.bucket.write_export(files, [0] * len(files))
    assert setting.take().items == 0
    assert setting.items() == []


def test_a_last_line_without_newline_and_several_members(setting: Setting) -> None:
    found = _items(4)
    lines = [json.dumps({"Item": item}).encode() for item in found]
    data = gzip.compress(lines[0] + b"\n" + lines[1][:9]) + gzip.compress(lines[1][9:] + b"\n")
    data += gzip.compress(b"\n".join(lines[2:]))
    setting.status = setting.bucket.write_export({"a.json.gz": data}, [4])
    assert setting.take().items == 4
    assert setting.items() == _texts(found)


def test_incremental_exports_are_refused() -> None:
    bucket = Bucket()
    status = bucket.write_export({"a": EMPTY}, [0], exportType="INCREMENTAL_EXPORT")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "open_object", bucket.open)
        with pytest.raises(ExportError, match="INCREMENTAL"):
            read_manifest(None, status)  # type: ignore[arg-type]


def _change(key: str, change: Callable[[bytes], bytes]) -> Callable[[Bucket], None]:
    def harm(bucket: Bucket) -> None:
        (name,) = (name for name in bucket.objects if name.endswith(key))
        bucket.objects[name] = change(bucket.objects[name])

    return harm


@pytest.mark.parametrize(
    ("files", "counts", "harm", "said"),
    [
        ([_gz(_items(5))], [5], _change("a.json.gz", lambda d: _gz(_items(5, 1))), "MD5"),
        ([_gz(_items(5))], [6], None, "promises 6"),
        ([_gz(_items(5))[:-9]], [5], None, "ends in the middle"),
        ([_gz(_items(5))[:30]], [5], None, "ends in the middle"),
        ([b"no gzip" * 9], [5], None, "not GZIP"),
        ([b""], [0], None, "ends in the middle"),
        ([EMPTY + b"x" * 60], [0], None, "not GZIP"),
        ([gzip.compress(b'{"Item":{"n":{"N":"1"}}}\n')], [1], None, "line 1: an item without"),
        ([gzip.compress(b'{"Item":\n')], [1], None, "a.json.gz, line 1: not JSON"),
        ([gzip.compress(b'{"Item":{"\x80":{}}}\n')], [1], None, "a.json.gz, line 1: not JSON"),
        ([_gz(_items(3)), _gz(_items(3))], [3, 3], None, "6 items but 3 keys"),
        ([_gz(_items(3))], [3], _change("files.md5", lambda d: b"x"), "checksum"),
    ],
)
def test_damage_leaves_nothing_visible(
    setting: Setting,
    files: list[bytes],
    counts: list[int],
    harm: Callable[[Bucket], None] | None,
    said: str,
) -> None:
    named = dict(zip(["a.json.gz", "b.json.gz"], files, strict=False))
    setting.status = setting.bucket.write_export(named, counts)
    if harm:
        harm(setting.bucket)
    with pytest.raises(ExportError) as refused:
        setting.take()
    assert said in refused.value.message
    assert refused.value.fix
    assert setting.lake.iceberg.load("orders_snapshot") is None
    assert setting.lake.table(setting.lake.settings.tables[0]).log.load().staged is None


@pytest.mark.parametrize("at_once", [1, 100, 600])
def test_large_exports_are_sorted_in_ranges(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Whatever the keys, the ranges together are the table; a key twice still shows."""
    monkeypatch.setattr(exported, "sorted_at_once", lambda _: at_once)
    found = _items(40)
    files = {f"{n}.json.gz": _gz(found[n::4]) for n in range(4)}
    setting.status = setting.bucket.write_export(files, [10] * 4)
    assert setting.take().items == 40
    assert setting.items() == _texts(found)
    files["4.json.gz"] = _gz(found[7:8])
    setting.status = setting.bucket.write_export(files, [10, 10, 10, 10, 1])
    with pytest.raises(ExportError, match="41 items but 40 keys"):
        setting.take()
    assert setting.items() == _texts(found)


def test_memory_is_bounded_whatever_the_compression() -> None:
    """A megabyte of GZIP may hold a gigabyte; a line may have no end."""
    pieces = export._gunzip(iter([gzip.compress(bytes(64 << 20))]), "x")
    assert max(map(len, pieces)) <= 1 << 20
    endless = (b"x" * (1 << 20) for _ in range(1 << 20))
    with pytest.raises(ExportError, match="too long"):
        list(whole_lines(endless, "data file x"))


@pytest.mark.parametrize("library", ["zlib", "isal.isal_zlib"])
def test_gunzip_is_exact_however_the_bytes_come(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_zlib", pytest.importorskip(library))
    rng = random.Random(5)
    for size in (0, 1, 1000, (1 << 20) - 1, 1 << 20, 3 << 20):
        text = rng.randbytes(size // 2) + bytes(size - size // 2)
        data = gzip.compress(text[: size // 3]) + EMPTY + gzip.compress(text[size // 3 :])
        for step in (1 << 20, 40_001, 1 if size < 2000 else 999):
            pieces = (data[i : i + step] for i in range(0, len(data), step))
            assert b"".join(export._gunzip(pieces, "x")) == text
        with pytest.raises(ExportError):
            list(export._gunzip(iter([data[:-4]]), "x"))
        with pytest.raises(ExportError):
            list(export._gunzip(iter([data[:-8], b"\xff" * 8]), "x"))


# ------------------------------------------------------------------------------------- resume


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "KEEP_BYTES", 1)
    monkeypatch.setattr(spool, "PLAIN_BYTES", 0)


def _three(setting: Setting) -> list[dict[str, Any]]:
    found = _items(30)
    files = {f"{n}.json.gz": _gz(found[n * 10 : n * 10 + 10]) for n in range(3)}
    setting.status = setting.bucket.write_export(files, [10, 10, 10])
    return found


@pytest.mark.usefixtures("keep_all")
def test_a_run_after_a_failure_converts_only_what_is_missing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _three(setting)
    read = setting.bucket.open

    def failing(aws: object, bucket: str, key: str) -> io.BytesIO | None:
        if key.endswith("2.json.gz"):
            raise LakeError("s3://bucket: read timeout")
        return read(aws, bucket, key)

    monkeypatch.setattr(export, "open_object", failing)
    with pytest.raises(LakeError, match="timeout"):
        setting.take()
    assert setting.bucket.read == ["0.json.gz", "1.json.gz"]
    assert len(setting.staged()) == 4
    monkeypatch.setattr(export, "open_object", read)
    assert setting.take().items == 30
    assert setting.bucket.read == ["0.json.gz", "1.json.gz", "2.json.gz"]
    assert setting.items() == _texts(found)
    assert setting.staged() == []


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("how", ["no parts", "no end", "other file", "of another export"])
def test_what_is_kept_is_not_trusted_blindly(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    found = _three(setting)
    with monkeypatch.context() as patch:
        patch.setattr(exported, "commit_typed", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            setting.take()
    store, kept = setting.lake.store, setting.staged()
    assert len(kept) == 6
    if how == "other file":
        found = _items(30, 5)
        files = {f"{n}.json.gz": _gz(found[n * 10 : n * 10 + 10]) for n in range(3)}
        setting.status = setting.bucket.write_export(files, [10, 10, 10])
    elif how == "of another export":
        for key in kept:
            data = store.read(key)
            assert data is not None
            store.write(key.replace("0a1b2c3d", "00000000"), data)
            store.delete([key])
    else:
        store.delete(k for k in kept if k.endswith(".arrow" if how == "no parts" else ".json"))
    setting.bucket.read.clear()
    assert setting.take().items == 30
    assert setting.bucket.read == ["0.json.gz", "1.json.gz", "2.json.gz"]
    assert setting.items() == _texts(found)
    assert setting.staged() == []


_CHILD = """
import io, os, signal, sys
from pathlib import Path
from cdc_pipeline.aws.export import DataFile, verified
from cdc_pipeline.snapshot import staging
from cdc_pipeline.lake.storage.store import LocalStore
folder, scratch, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
staging.KEEP_BYTES = 1
kept = staging.Staging(LocalStore(folder), "s/e/", scratch, ("pk",))
kept.open("s/")
for number, line in enumerate(sys.stdin):
    name, md5, items = line.split()
    file = DataFile(name, md5, int(items))
    if not kept.kept(file):
        print(name, flush=True)
        pieces = verified((folder / name).open("rb"), file, name)
        if number == kill_at:
            next(pieces)
            os.kill(os.getpid(), signal.SIGKILL)
        kept.convert(file, pieces, name)
"""


def test_sigkill_in_the_middle_of_a_conversion(tmp_path: Path) -> None:
    listed = []
    for n in range(4):
        data = _gz(_items(50, 50 * n))
        (tmp_path / f"{n}.gz").write_bytes(data)
        listed.append(f"{n}.gz {_md5(data)} 50\n")

    def run(kill_at: int) -> tuple[int, list[str]]:
        scratch = tmp_path / f"scratch-{kill_at}"
        scratch.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path), str(scratch), str(kill_at)],
            input="".join(listed),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        return done.returncode, done.stdout.split()

    assert run(2) == (-signal.SIGKILL, ["0.gz", "1.gz", "2.gz"])
    assert run(9) == (0, ["2.gz", "3.gz"])
    paths = sorted((tmp_path / "scratch-9").glob("*.arrow"))
    spooled = Spooled([(path, None) for path in paths], 200, 0, compressed=True)
    rows = [row for batch in spooled.read() for row in batch.column("item").to_pylist()]
    assert sorted(rows) == sorted(_texts(_items(200)))
