"""What exports and publications take of memory, by the peaks of processes of their own."""

import base64
import gzip
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cdc_pipeline.aws import export
from cdc_pipeline.aws.export import DataFile, ExportStatus, Manifest
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.run_context import SILENT
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.snapshot import snapshot
from cdc_pipeline_tests.capture.shards.test_scale import peak
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_FILES = 8
_ITEMS = 62_500  # in a file; 650 MB of text in all, which no compression makes much less of
_CHANGES = 20_000
_STAGED_MB = 1100  # of it 100 where compiled code is not cached yet, and is compiled by the run
_PUBLISHED_MB = 1600  # DuckDB has `memory_mb` of it, by default 1000; 100 as above


def test_the_peaks_of_a_large_table(tmp_path: Path) -> None:
    staged, published, folded = _peaks(tmp_path)
    print(f"\nMB at most: {staged} when staged, {published} when published, {folded} when folded")
    assert staged <= _STAGED_MB
    assert max(published, folded) <= _PUBLISHED_MB


def _peaks(folder: Path) -> list[int]:
    files = [_write_file(folder, number) for number in range(_FILES)]
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import child; child()", str(folder)],
        input=json.dumps([[file.key, file.md5, file.items] for file in files]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [*map(int, done.stdout.split())]


def _write_file(folder: Path, number: int) -> DataFile:
    path, chance = folder / f"{number}.json.gz", random.Random(number)
    with gzip.open(path, "wb", compresslevel=1) as file:
        for n in range(number, _ITEMS * _FILES, _FILES):
            note = chance.randbytes(600).hex()
            item = f'"pk":{{"S":"k{n}"}},"n":{{"N":"{n}.5"}},"note":{{"S":"{note}"}}'
            file.write(f'{{"Item":{{{item}}}}}\n'.encode())
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()
    return DataFile(path.name, base64.b64encode(digest).decode(), _ITEMS)


def child() -> None:
    """Stage an export, publish it, publish it again after changes; print the peak after each."""
    folder = Path(sys.argv[1])
    files = [DataFile(*line) for line in json.loads(sys.stdin.read())]
    export.open_object = lambda _aws, _bucket, key: (folder / key).open("rb")
    built = LakeBuilder.at(folder)
    built.start()
    items = sum(file.items for file in files)
    staged, _ = snapshot._stage(
        built.table_lake,
        ExportStatus("export/1", "COMPLETED", "bucket", "", None, ""),
        Manifest("bucket", items, "", files),
        Baseline(1, START_US, START_US),
        ("pk",),
        list,
        SILENT,
    )
    print(round(peak()))
    committed = staged.table.current_snapshot()
    assert committed is not None
    baseline = Baseline(1, START_US, START_US, snapshot_id=committed.snapshot_id, items=items)
    built.append(baseline=baseline)
    built.read_to(START_US + MARGIN_US)
    assert publish_current_state(built.table_lake).items == items
    print(round(peak()))
    step = items // _CHANGES
    built.land(change(f"k{n * step}", n + 1, {"n": {"N": "1"}}) for n in range(_CHANGES))
    folded = publish_current_state(built.table_lake)
    assert (folded.items, folded.changes_folded) == (items, _CHANGES)
    print(round(peak()))
