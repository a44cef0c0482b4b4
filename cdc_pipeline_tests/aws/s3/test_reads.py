"""Reads from S3 over a connection that breaks: the whole object or listing, or an error."""

import io
import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from botocore.loaders import create_loader

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.objects import S3Store, SourceBucket, open_object
from cdc_pipeline.core.errors import LakeError, SourceError
from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.faults import Fault
from cdc_pipeline_tests.simulators.s3_server import BUCKET, S3Simulator

_MODELS = create_loader()  # botocore's service models, read once
DATA = random.Random(0).randbytes(300_000)
KEYS = [f"lake/k{number}" for number in range(8)]
BROKEN = {
    "cut": faults.cut(),
    "cut at once": faults.cut(0),
    "reset": faults.reset(),
    "reset after headers": faults.reset(after_headers=True),
}


@pytest.fixture
def sim() -> Iterator[S3Simulator]:
    with S3Simulator(dict.fromkeys(KEYS, DATA)) as made:
        yield made


@pytest.fixture
def aws(sim: S3Simulator, monkeypatch: pytest.MonkeyPatch) -> AwsSession:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulator")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    # botocore's own pauses; its endpoint module uses `time` for nothing else.
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("cdc_pipeline.aws.s3.reads._RETRY_SECONDS", 0)
    made = AwsSession(region="us-east-1", endpoint_url=sim.endpoint_url)
    made.session.register_component("data_loader", _MODELS)
    return made


@pytest.fixture
def store(aws: AwsSession) -> S3Store:
    return S3Store(aws, BUCKET, "lake")


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_a_whole_object_and_a_part_of_one(sim: S3Simulator, store: S3Store, fault: Fault) -> None:
    sim.faults.script("GetObject", fault, fault)
    assert store.read("k1") == DATA
    sim.faults.script("GetObject", fault)
    assert store.read_part("k1", 1_000, 5_000) == DATA[1_000:6_000]
    assert sim.faults.unused() == 0
    assert store.read("nothing") is None


def test_an_object_that_always_breaks_off_is_an_error(sim: S3Simulator, store: S3Store) -> None:
    sim.faults.always("GetObject", faults.cut())
    with pytest.raises(LakeError, match="reading k1"):
        store.read("k1")
    assert len(sim.asked) == 5


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_a_stream_goes_on_where_it_broke_off(
    sim: S3Simulator, aws: AwsSession, fault: Fault
) -> None:
    sim.faults.script("GetObject", fault, fault, None, fault)
    stream = open_object(aws, BUCKET, "lake/k1")
    assert stream is not None
    with stream:
        pieces = list(iter(lambda: stream.read(70_000), b""))
    assert b"".join(pieces) == DATA
    assert {len(piece) for piece in pieces[:-1]} == {70_000}


def test_a_stream_reads_the_rest_only(sim: S3Simulator, aws: AwsSession) -> None:
    sim.faults.script("GetObject", faults.cut(0.5), faults.cut(0.5))
    stream = open_object(aws, BUCKET, "lake/k1")
    assert stream is not None
    assert stream.read() == DATA
    assert [asked for asked in sim.asked if asked] == ["bytes=150000-", "bytes=225000-"]


def test_an_object_that_is_replaced_meanwhile_is_never_mixed(
    sim: S3Simulator, aws: AwsSession
) -> None:
    bucket = SourceBucket(aws, BUCKET)
    found = next(bucket.objects("lake/k1"))
    replaced = faults.meanwhile(lambda: sim.objects.update({"lake/k1": DATA[::-1]}))
    sim.faults.script("GetObject", faults.cut(), replaced)
    with pytest.raises(SourceError, match="changed while it was read"):
        bucket.download(found, io.BytesIO())


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_a_download(sim: S3Simulator, aws: AwsSession, fault: Fault) -> None:
    bucket, file = SourceBucket(aws, BUCKET), io.BytesIO()
    found = next(bucket.objects("lake/k1"))
    sim.faults.script("GetObject", fault, fault)
    assert bucket.download(found, file)
    assert file.getvalue() == DATA


@pytest.mark.parametrize(
    "fault",
    [*BROKEN.values(), faults.cut(honest_length=True), faults.empty_body()],
    ids=[*BROKEN, "cut, honest length", "empty"],
)
def test_a_listing(sim: S3Simulator, store: S3Store, aws: AwsSession, fault: Fault) -> None:
    names = [key.removeprefix("lake/") for key in KEYS]
    sim.faults.script("ListObjectsV2", None, fault, None, fault)
    assert list(store.list("")) == names
    sim.faults.script("ListObjectsV2", fault)
    assert [file.key for file in store.files("")] == names
    sim.faults.script("ListObjectsV2", None, fault, fault)
    assert [found.key for found in SourceBucket(aws, BUCKET).objects("lake/")] == KEYS
    assert sim.faults.unused() == 0
    assert list(store.list("", after="k5")) == ["k6", "k7"]


def test_a_listing_that_is_always_empty_is_an_error(sim: S3Simulator, store: S3Store) -> None:
    """Never a lake without a log."""
    sim.faults.always("ListObjectsV2", faults.empty_body())
    with pytest.raises(LakeError, match="listing"):
        list(store.list(""))
