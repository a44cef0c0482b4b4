"""Capture over each backend: what lands, folded, is the table as a Scan shows it."""

import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cdc_pipeline.aws.table import scan_items, wire_form
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source_choice import open_source
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.fold import KeyedChange, fold, items
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.landing import read_landing
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline_tests.contract.backends import (
    BOTH_IMAGES,
    MOTO,
    SANDBOX,
    SIMULATOR,
    Backend,
    key,
)
from cdc_pipeline_tests.contract.deviations import holds
from cdc_pipeline_tests.contract.test_records import EVERY_TYPE
from cdc_pipeline_tests.simulators.items import Item

# Not over dynoxide: its open shard says that it is closed, so a capture waits for its end.
pytestmark = [
    pytest.mark.contract,
    pytest.mark.parametrize("backend", [SIMULATOR, SANDBOX, MOTO], indirect=True),
]

_OPTIONS = CaptureOptions(poll_seconds=0.01, empty_polls=3)


@dataclass
class Copy:
    """A table, and the lake that it is captured into."""

    backend: Backend
    name: str
    settings_path: Path

    @property
    def lake(self) -> Lake:
        return Lake.open(load_settings(self.settings_path))

    @property
    def log(self) -> CaptureLog:
        lake = self.lake
        paths = lake.table(lake.settings.table(self.name)).paths
        return CaptureLog(lake.store, paths, self.backend.clock)

    def capture(self) -> CaptureResult:
        """One run, begun after everything that was written before it."""
        self.backend.sleep(0.01)
        lake = self.lake
        source = open_source(lake.table(lake.settings.table(self.name)))
        return capture_table(self.log, source, _OPTIONS, sleep=lambda _: time.sleep(0.01))

    def landed(self) -> list[tuple[str, Change]]:
        """All landed changes with their order keys."""
        log = self.log
        return [
            (order_key(landed.generation, change.position), change)
            for landed in log.load().objects.values()
            for change in read_landing(log.store, landed.key)
        ]

    def folded(self) -> dict[str, str]:
        """Items by key, as canonical typed JSON."""
        rows = [
            KeyedChange(change.keys, order, change.new_image)
            for order, change in self.landed()
            # What the SQL fold leaves out, too: an event that says nothing of the item.
            if change.op == "D" or change.new_image is not None
        ]
        return items(fold({}, rows))

    def scanned(self) -> dict[str, str]:
        """What `folded` must be."""
        found = (canonical_item(wire_form(i)) for i in scan_items(self.lake.aws, self.name))
        return {to_json({n: item[n] for n in sorted(key("a"))}): to_json(item) for item in found}


def _copy(backend: Backend, folder: Path, view: str = BOTH_IMAGES) -> Copy:
    name = backend.create_table(view)
    settings = {
        "lake": str(folder / "lake"),
        "region": "us-east-1",
        "export": {"bucket": "none"},
        "tables": [{"name": name, "complete_by_read": True}],
    }
    path = folder / "cdc_pipeline.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return Copy(backend, name, path)


@pytest.fixture
def copy(backend: Backend, tmp_path: Path) -> Copy:
    return _copy(backend, tmp_path)


def _write(copy: Copy, count: int, seed: int) -> Counter[str]:
    """Puts, updates and deletes of a few items with values of every type; what they should land."""
    chance = random.Random(seed)
    backend, name = copy.backend, copy.name
    known = {_place(item) for item in backend.scan(name)}
    expected: Counter[str] = Counter()
    for number in range(count):
        where = key(chance.choice(("a", "A", "größe")), chance.randrange(8))
        serial = {"N": f"{seed}.{number + 1}"}
        kind = chance.choice(("put", "put", "update", "delete"))
        there = _place(where) in known
        if kind == "delete":
            backend.delete(name, where)
            known.discard(_place(where))
            expected["D"] += there
            continue
        if kind == "put":
            chosen = chance.sample(sorted(EVERY_TYPE), chance.randrange(len(EVERY_TYPE)))
            backend.put(name, {**where, **{n: EVERY_TYPE[n] for n in chosen}, "serial": serial})
        else:
            chosen = chance.choice(sorted(EVERY_TYPE))
            backend.update(name, where, **{chosen: EVERY_TYPE[chosen], "serial": serial})
        known.add(_place(where))
        expected["U" if there else "I"] += 1
    return expected


def _place(item: Item) -> tuple[str, int]:
    return item["pk"]["S"], int(item["sk"]["N"])


def test_what_landed_is_the_table(backend: Backend, copy: Copy) -> None:
    expected: Counter[str] = Counter()
    for seed in range(3):
        expected += _write(copy, 120, seed)
        result = copy.capture()
        assert result.rows
        assert result.quarantined == 0
        assert copy.folded() == copy.scanned()
    assert copy.capture().rows == 0
    changes = [change for _, change in copy.landed()]
    found = Counter(change.op for change in changes) == expected
    holds(backend, "each write that changes something is captured once", found, True)
    assert len({change.uuid for change in changes}) == len(changes)
    assert copy.log.load().gaps == {}


@pytest.mark.parametrize("view", ["KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE"])
def test_what_landed_is_the_table_for_other_view_types(
    backend: Backend, tmp_path: Path, view: str
) -> None:
    copy = _copy(backend, tmp_path, view)
    for seed in range(2):
        _write(copy, 80, seed)
        copy.capture()
        assert copy.folded() == copy.scanned()


def test_a_stream_turned_off_and_on_again_is_a_gap(backend: Backend, copy: Copy) -> None:
    if backend.name == MOTO:
        pytest.skip("moto takes no writes while a stream is off")
    backend.put(copy.name, key("captured"))
    copy.capture()
    backend.put(copy.name, key("left in the old stream"))
    backend.disable_stream(copy.name)
    with pytest.raises(SourceError, match="its stream is off"):
        copy.capture()
    backend.put(copy.name, key("lost"))
    backend.sleep(0.01)
    backend.enable_stream(copy.name)
    backend.put(copy.name, key("in the new stream"))
    result = copy.capture()
    assert [gap.cause for gap in result.gaps] == ["new stream"]
    landed = [change.keys for _, change in sorted(copy.landed(), key=lambda pair: pair[0])]
    names = ("captured", "left in the old stream", "in the new stream")
    assert landed == [to_json(key(name)) for name in names]


def test_a_table_made_again_is_a_gap(backend: Backend, copy: Copy) -> None:
    backend.put(copy.name, key("of the old table"))
    copy.capture()
    backend.delete_table(copy.name)
    backend.sleep(0.01)
    backend.create_table(name=copy.name)
    backend.put(copy.name, key("of the new table"))
    result = copy.capture()
    (gap,) = result.gaps
    rule = "a gap tells a table made again from a stream"
    holds(backend, rule, gap.cause, "table recreated")
    (_, old), (_, new) = sorted(copy.landed(), key=lambda pair: pair[0])
    assert [old.keys, new.keys] == [
        to_json(key("of the old table")),
        to_json(key("of the new table")),
    ]
