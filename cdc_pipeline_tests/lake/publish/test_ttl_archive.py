"""ttl_archive: what TTL deleted, with its last image, against a reference in plain Python."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.items.attributes import canonical_item, plain_json, to_json
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.ttl_archive import ARCHIVE_SCHEMA, build_archive_day
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change, key_of, plain_view

_ARCHIVED = [{"name": "orders", "ttl_archive": True}]
_NAMES = "abcdef"
_DAY_SECONDS = 24 * 3600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


@pytest.fixture
def built(tmp_path: Any) -> LakeBuilder:
    return LakeBuilder.at(tmp_path, tables=_ARCHIVED)


def _typed(name: str, item: dict[str, Any]) -> str:
    return to_json(canonical_item({**item, **key_of(name)}))


def _by_ttl(gone: Change) -> Change:
    return gone._replace(is_ttl_delete=True)


def _story(seed: int, base: dict[str, dict[str, Any]], view: str) -> list[Change]:
    """Inserts, updates and deletes of both kinds over two days, told as this view type tells."""
    chance = random.Random(seed)
    state = {name: _typed(name, item) for name, item in base.items()}
    changes: list[Change] = []
    for number in range(1, 81):
        name = chance.choice(_NAMES)
        at = number if number < 40 else number + _DAY_SECONDS
        old = state.get(name)
        if old is not None and chance.random() < 0.4:
            gone = change(name, at, None)._replace(is_ttl_delete=chance.random() < 0.6)
            changes.append(gone._replace(old_image=old if view == "NEW_AND_OLD_IMAGES" else None))
            del state[name]
            continue
        new = {"n": {"N": f"{number}.50"}}
        made = change(name, at, new, op="U" if old else "I")
        state[name] = _typed(name, new)
        if view == "NEW_AND_OLD_IMAGES":
            changes.append(made._replace(old_image=old))
        elif view == "NEW_IMAGE":
            changes.append(made)
        else:
            changes.append(made._replace(new_image=None, data=None))
            if chance.random() < 0.8:  # read behind it, as completion by read does
                position = f"{made.position}.read"
                changes.append(made._replace(uuid=f"read-{at}", position=position))
    return changes


def _expected(base: dict[str, dict[str, Any]], changes: list[Change]) -> list[dict[str, Any]]:
    """The reference: one walk over the story in its order."""
    known: dict[str, str | None] = {
        to_json(key_of(name)): _typed(name, item) for name, item in base.items()
    }
    rows = []
    for one in changes:
        if one.op == "D" and one.is_ttl_delete:
            item = one.old_image or known.get(one.keys)
            rows.append(
                {
                    "keys": one.keys,
                    "expired_at": _EPOCH + timedelta(microseconds=one.write_time_us),
                    "order_key": order_key(1, one.position),
                    "day": day_of(one.write_time_us),
                    "_item": item,
                    "data": item and plain_json(json.loads(item)),
                    "is_ttl_delete": True,
                }
            )
        known[one.keys] = one.new_image  # of a bare event: not known any more
    return sorted(rows, key=lambda row: (row["keys"], row["order_key"]))


def _archive(built: LakeBuilder) -> list[dict[str, Any]]:
    for day in sorted({day_of(one.write_time_us) for _, one in built.changes}):
        build_cdc_day(built.table_lake, day)
        build_archive_day(built.table_lake, day)
    return _rows(built)


def _rows(built: LakeBuilder) -> list[dict[str, Any]]:
    stored = ", ".join(ARCHIVE_SCHEMA.names)
    sql = f"SELECT {stored} FROM orders.ttl_archive ORDER BY keys, order_key"
    return plain_view(built.lake, sql)


@pytest.mark.parametrize("view", ["NEW_AND_OLD_IMAGES", "NEW_IMAGE", "KEYS_ONLY"])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_reference(built: LakeBuilder, view: str, seed: int) -> None:
    base = {name: {"n": {"N": "0"}, "base": {"S": name}} for name in _NAMES[:3]}
    built.start()
    built.stage(base)
    changes = _story(seed, base, view)
    landed = [*changes, *random.Random(seed).sample(changes, 10)]  # some of it twice
    random.Random(seed).shuffle(landed)
    for start in range(0, len(landed), 30):
        built.land(landed[start : start + 30])
    found, expected = _archive(built), _expected(base, changes)
    assert len(expected) > 5
    assert len({row["day"] for row in expected}) == 2
    assert found == expected
    if view != "KEYS_ONLY":
        assert all(row["_item"] for row in found)


def test_late_rows_come_with_the_next_build(built: LakeBuilder) -> None:
    built.start()
    changes = [change("a", 1, {"n": {"N": "1"}}), change("a", 2, {"n": {"N": "2"}})]
    changes += [_by_ttl(change("a", 3, None)), _by_ttl(change("b", 4, None))]
    built.land([changes[0], changes[2]])
    assert _archive(built) == _expected({}, [changes[0], changes[2]])
    built.land([changes[1], changes[3]])
    assert _archive(built) == _expected({}, changes)
    day = day_of(START_US + 4_000_000)
    again = build_archive_day(built.table_lake, day)
    assert (again.rows, again.unknown, again.watermark) == (2, 1, built.state.n)
    assert _rows(built) == _expected({}, changes)


def test_a_later_baseline_is_the_last_image_too(built: LakeBuilder) -> None:
    """Where no change tells: the item was in the newer of two baselines, with another value."""
    built.start()
    built.stage({"a": {"n": {"N": "1"}}})
    built.start(generation=2)
    built.stage({"a": {"n": {"N": "2"}}}, generation=2)
    built.land([_by_ttl(change("a", 5, None))], generation=2)
    assert [row["_item"] for row in _archive(built)] == [_typed("a", {"n": {"N": "2"}})]


def test_what_users_deleted_is_no_last_image(built: LakeBuilder) -> None:
    """A new life of the item of which nothing is known: not the image of the one before."""
    built.start()
    changes = [
        change("a", 1, {"n": {"N": "1"}}),
        change("a", 2, None),
        _by_ttl(change("a", 4, None)),
    ]
    built.land(changes)
    assert [row["_item"] for row in _archive(built)] == [None]


def test_masked_as_the_rules_say(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 32)
    rules = {"pk": {"hash": True}, "n": {"mask": "***"}, "secret": {"drop": True}}
    tables = [{"name": "orders", "ttl_archive": True, "columns": rules}]
    built = LakeBuilder.at(tmp_path, tables=tables)
    built.start()
    item = {"n": {"N": "1"}, "secret": {"S": "x"}, "open": {"S": "y"}}
    built.stage({"a": item})
    changes = [change("b", 1, item), _by_ttl(change("a", 2, None)), _by_ttl(change("b", 3, None))]
    built.land(changes)
    rows = _archive(built)
    assert [sorted(json.loads(row["data"])) for row in rows] == [["n", "open", "pk"]] * 2
    assert [json.loads(row["data"])["n"] for row in rows] == ["***"] * 2
    for row in rows:
        assert json.loads(row["_item"])["pk"] == json.loads(row["keys"])["pk"]
        assert json.loads(row["data"])["pk"] not in ("a", "b")


def test_without_cdc_it_says_what_to_do(built: LakeBuilder) -> None:
    built.start()
    with pytest.raises(NotReadyError, match=r"no cdc(.|\n)*materialise orders/cdc first"):
        build_archive_day(built.table_lake, day_of(START_US))
