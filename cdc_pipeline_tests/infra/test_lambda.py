"""The Lambda function of Firehose: rows as defined, records that fail alone, limits, the zip."""

import base64
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.kinesis import from_envelope, read_envelope
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.transports import FIREHOSE
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, landing_table
from cdc_pipeline_tests.envelopes import (
    ENVELOPES,
    KEYS,
    READABLE,
    TABLE_ID,
    Envelope,
    Facts,
    blob,
    blobs,
    envelope,
    expected,
)
from cdc_pipeline_tests.infra import firehose
from cdc_pipeline_tests.infra.firehose import ARRIVED_MS, Context, answer, converted, lines
from infra import lambda_handler
from infra.build_lambda import build

_FIXTURE = Path(__file__).parents[1] / "data" / "firehose_event.json"
_LAMBDA_BYTES = 6 * 1024 * 1024


@pytest.fixture(autouse=True, scope="module")
def _tables() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(lambda_handler.TABLE_IDS, firehose.TABLE_IDS)
        yield


def _landing_row(change: Change) -> dict[str, Any]:
    """The row that capture would land for a change, as the line spells it."""
    (row,) = landing_table([change], ARRIVED_MS * 1000).to_pylist()
    for name in ("time_stamp", "landed_at"):
        row[name] = row[name].isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    return row


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: envelope.name)
def test_the_corpus(envelope: Envelope, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = answer([envelope.blob])
    log = json.loads(capsys.readouterr().out)
    if isinstance(envelope.becomes, Facts):
        (line,) = lines([found])
        change = expected(
            envelope.becomes, transport=FIREHOSE, sequence_number="0", shard_id="shard-1"
        )
        assert json.loads(line) == _landing_row(change)
        assert list(json.loads(line)) == [column.name for column in LANDING_COLUMNS]
        assert line.endswith("}\n")
        assert line.count("\n") == 1
        assert log == {"records": 1, "failed": {}}
    else:
        assert found["result"] == "ProcessingFailed"
        assert base64.b64decode(found["data"]) == envelope.blob
        assert list(log["failed"].values()) == [1]


@given(st.lists(blobs(), max_size=4))
def test_rows_are_what_the_definition_says(records: list[bytes]) -> None:
    for n, (found, record) in enumerate(zip(answer(records), records, strict=True)):
        try:
            change = from_envelope(
                read_envelope(record),
                table_id=TABLE_ID,
                transport=FIREHOSE,
                sequence_number=str(n),
                shard_id="shard-1",
            )
        except UnreadableError:
            assert (found["result"], base64.b64decode(found["data"])) == (
                "ProcessingFailed",
                record,
            )
        else:
            assert json.loads(lines([found])[0]) == _landing_row(change)


def test_bad_records_fail_one_by_one_and_the_others_land() -> None:
    found = answer([e.blob for e in ENVELOPES])
    fine = [a["result"] == "Ok" for a in found]
    assert fine == [isinstance(e.becomes, Facts) for e in ENVELOPES]


@pytest.mark.parametrize("name", [None, "other", ["people"], {"people": 1}])
def test_records_of_other_tables_fail(name: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = answer([blob(envelope() | {"tableName": name})])
    assert found["result"] == "ProcessingFailed"
    assert "TABLE_IDS" in capsys.readouterr().out


def test_data_that_is_no_base64_fails_alone() -> None:
    asked = firehose.event([READABLE[0].blob] * 2)
    asked["records"][0]["data"] = "*"
    found = lambda_handler.handler(asked, Context())["records"]
    assert [(a["result"], a["data"] == "*") for a in found] == [
        ("ProcessingFailed", True),
        ("Ok", False),
    ]


def test_records_without_kinesis_metadata_land() -> None:
    asked = firehose.event([READABLE[0].blob])
    del asked["records"][0]["kinesisRecordMetadata"]
    (line,) = lines(lambda_handler.handler(asked, Context())["records"])
    row = json.loads(line)
    assert (row["op"], row["sequence_number"], row["shard_id"]) == ("U", "", "")


def _large(size: int) -> bytes:
    text = "".join(random.Random(size).choices('abc"\\日', k=size))
    return blob(envelope(NewImage=KEYS | {"text": {"S": text}}))


def test_an_answer_stays_below_lambdas_limit() -> None:
    """Records of 400 kB, DynamoDB's largest items, grow threefold: what fits is answered."""
    records = [_large(size) for size in (240_000, 10, *[240_000] * 5, 10)]
    assert len(json.dumps(firehose.event(records))) < _LAMBDA_BYTES
    found = answer(records)
    results = [a["result"] for a in found]
    assert 5_000_000 < len(json.dumps({"records": found})) < _LAMBDA_BYTES
    assert results == ["Ok"] * 3 + ["ProcessingFailed"] * 4 + ["Ok"]
    for a, record in zip(found, records, strict=True):
        if a["result"] == "ProcessingFailed":
            assert base64.b64decode(a["data"]) == record


def test_an_event_of_nothing_but_bad_records_is_answered() -> None:
    records = [b"x" * 1000] * 4000
    found = answer(records)
    assert len(json.dumps({"records": found})) < _LAMBDA_BYTES
    assert {a["result"] for a in found} == {"ProcessingFailed"}


def test_the_rest_fails_before_the_time_is_over() -> None:
    found = answer([READABLE[0].blob] * 4, Context(left_ms=8_000, step=1_000))
    assert [a["result"] for a in found] == ["Ok", "Ok", "Ok", "ProcessingFailed"]


def test_no_contents_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    secret = {"S": "very secret"}
    records = [envelope(Keys={"name": secret}), envelope(NewImage={"very secret": {"X": secret}})]
    answer([*(blob(record) for record in records), b"very secret"])
    log = capsys.readouterr().out
    assert json.loads(log)["records"] == 3
    assert "secret" not in log


def test_without_its_tables_the_function_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(lambda_handler.TABLE_IDS)
    with pytest.raises(KeyError, match="TABLE_IDS"):
        answer([])


def test_through_parquet_rows_are_those_that_capture_lands() -> None:
    """Firehose converts to Parquet with INT96 timestamps; read back it is a landing file."""
    sink = pa.BufferOutputStream()
    rows = lines(answer([e.blob for e in READABLE]))
    pq.write_table(
        converted(rows), sink, compression="snappy", use_deprecated_int96_timestamps=True
    )
    landed = pq.read_table(pa.BufferReader(sink.getvalue()))
    changes = [
        expected(e.becomes, transport=FIREHOSE, sequence_number=str(n), shard_id="shard-1")
        for n, e in enumerate(READABLE)
        if isinstance(e.becomes, Facts)
    ]
    assert landed.cast(LANDING_SCHEMA).equals(landing_table(changes, ARRIVED_MS * 1000))


def test_the_fixture() -> None:
    """An update in ms, an insert in µs with 38 digits and a binary, a TTL delete, a broken one."""
    asked = json.loads(_FIXTURE.read_text("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(lambda_handler.TABLE_IDS, json.dumps({"people": TABLE_ID}))
        answers = lambda_handler.handler(asked, Context())["records"]
    assert [a["result"] for a in answers] == ["Ok", "Ok", "Ok", "ProcessingFailed"]
    assert answers[3]["data"] == asked["records"][3]["data"]
    update, insert, delete = (json.loads(line) for line in lines(answers))
    assert (update["op"], update["write_time_us"]) == ("U", 1700000000123000)
    assert update["time_stamp"] == "2023-11-14 22:13:20.123"
    assert update["landed_at"] == "2023-11-14 22:13:21.000"
    assert update["data"] == '{"city":"London","name":"ada"}'
    assert update["old_image"] == '{"city":{"S":"Turin"},"name":{"S":"ada"}}'
    assert (insert["op"], insert["write_time_us"]) == ("I", 1700000000123456)
    assert insert["data"] == (
        '{"balance":98765432109876543210.987654321098765432,"city":"Malmö","name":"bo",'
        '"raw":"EgIIew==","tags":["y","z"]}'
    )
    assert (delete["op"], delete["data"], delete["is_ttl_delete"]) == ("D", None, True)
    assert (delete["sequence_number"], delete["shard_id"]) == ("49650002", "shardId-000000000001")


_ALONE = """
import json, sys
sys.path.insert(0, {zip!r})
import os, lambda_handler
os.environ["TABLE_IDS"] = {tables!r}
class Context:
    def get_remaining_time_in_millis(self): return 60000
answer = lambda_handler.handler(json.loads(sys.stdin.read()), Context())
from cdc_pipeline.core.items import attributes
assert ".zip" in attributes.__file__ and ".zip" in lambda_handler.__file__
print(json.dumps(answer))
"""


def test_the_zip_runs_where_nothing_else_is(tmp_path: Path) -> None:
    build(tmp_path / "lambda.zip")
    asked = firehose.event([e.blob for e in ENVELOPES])
    code = _ALONE.format(zip=str(tmp_path / "lambda.zip"), tables=firehose.TABLE_IDS)
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    log, found = done.stdout.splitlines()
    assert json.loads(found) == lambda_handler.handler(asked, Context())
    assert json.loads(log)["records"] == len(ENVELOPES)


def test_the_zip_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        build(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o644
            assert info.filename == "lambda_handler.py" or info.filename.startswith("cdc_pipeline/")
    assert (tmp_path / "a.zip").stat().st_size < 64_000
