"""Reconciliation against the source: samples, full differences, shadows, and a corrupted lake."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cdc_pipeline.capture.reconcile import reconcile_full, reconcile_sample
from cdc_pipeline.capture.shadow import discard_shadow, held_shadow, release_shadow
from cdc_pipeline.capture.snapshot import take_snapshot
from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.lake.connection import connect_lake
from cdc_pipeline.lake.tables import data_files
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, key, make_world

pytestmark = pytest.mark.slow

NAME = "orders"


@pytest.fixture
def kind() -> str:
    """A local lake unless a test says otherwise: its files are easy to damage."""
    return "local"


@pytest.fixture
def filled(world: World) -> World:
    """Ten items of a baseline, then changes: folded ones, and some that landed behind the fold."""
    world.make_table(NAME)
    world.configure(NAME)
    for number in range(10):
        world.put(NAME, f"k{number}", v={"S": f"text of {number}"}, n={"N": str(number)})
    world.bootstrap(NAME)
    world.put(NAME, "k0", v={"S": "folded"})
    world.delete(NAME, "k9")
    world.put(NAME, "new", v={"S": "folded, too"})
    world.capture(NAME)
    world.publish(NAME)
    world.put(NAME, "k1", v={"S": "landed"})
    world.delete(NAME, "k8")
    world.capture(NAME)
    world.build_cdc(NAME)
    return world


def _sample(world: World, items: int = 60) -> Any:
    return reconcile_sample(world.lake(), world.table(NAME), items)


def _full(world: World, *, repair: bool = False) -> Any:
    return reconcile_full(world.lake(), world.table(NAME), repair=repair)


def _kinds(report: Any) -> dict[str, str]:
    return {json.loads(d.key)["pk"]["S"]: d.kind for d in report.differences}


def test_a_sound_lake(filled: World) -> None:
    sampled = _sample(filled)
    assert sampled.is_sound, sampled
    assert sampled.compared == 11, "every key that ever was, once"
    assert sampled.export.files >= 1
    assert sampled.export.items == sampled.export.staged_rows == 10
    before = filled.items(NAME)
    full = _full(filled)
    assert full.is_sound, full
    assert full.compared == 9
    assert full.files.bytes > 0
    assert filled.items(NAME) == before
    assert held_shadow(filled.lake(), filled.table(NAME)) is None
    assert assert_mirrors(filled, NAME) == 9
