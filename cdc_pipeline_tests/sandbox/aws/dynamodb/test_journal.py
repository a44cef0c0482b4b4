"""The journal and the compression of exports, without a server."""

import gzip
from types import SimpleNamespace
from typing import Any

import pytest

from cdc_pipeline.sandbox.aws.dynamodb.journal import (
    Change,
    Clock,
    TableJournal,
    compact,
    roll_back,
    same,
)
from cdc_pipeline.sandbox.aws.dynamodb.streams import Writes
from cdc_pipeline.sandbox.aws.exports.files import _gzip


def test_gzip_is_readable() -> None:
    body = bytes(range(256)) * 1000
    assert gzip.decompress(_gzip(body)) == body
    assert len(_gzip(body)) < len(body)


def test_roll_back_restores_inserts_updates_and_deletes() -> None:
    first, second = {"v": {"N": "1"}}, {"v": {"N": "2"}}
    changes = [
        Change(1, "a", None, first),
        Change(2, "a", first, second),
        Change(3, "a", second, None),
        Change(4, "b", None, first),
    ]
    states = [roll_back({"b": first}, changes[n:]) for n in range(5)]
    assert states == [{}, {"a": first}, {"a": second}, {}, {"b": first}]


def test_clock_never_repeats() -> None:
    clock = Clock()
    ticks = [clock.tick() for _ in range(1000)]
    assert ticks == sorted(set(ticks))
    assert clock.now() >= ticks[-1]


def test_a_clock_that_stands_still_gives_the_time_it_was_told() -> None:
    clock = Clock()
    moment = clock.tick() + 3_600_000_000
    clock.stand_at(moment)
    assert [clock.now(), clock.tick(), clock.tick(), clock.now()] == [
        moment,
        moment,
        moment + 1,
        moment + 1,
    ]
    with pytest.raises(ValueError, match="cannot be set"):
        clock.stand_at(moment + 1)
    clock.stand_at(moment + 2)
    assert clock.tick() == moment + 2


def test_a_window_has_its_first_microsecond_and_not_its_last() -> None:
    changes = [Change(micros, "a", None, None) for micros in (10, 20, 20, 30)]
    journal = TableJournal(0, changes)
    assert journal.between(20, 30) == changes[1:3]
    assert journal.between(10, 31) == changes
    assert journal.between(11, 20) == []
    assert journal.since(20) == changes[1:]
    assert journal.since(31) == []


def test_compaction_keeps_the_ends_of_each_item() -> None:
    one, two, three = ({"v": {"N": n}} for n in "123")
    changes = [
        Change(1, "inserted", None, one),
        Change(2, "changed back", one, two),
        Change(3, "gone again", None, one),
        Change(4, "deleted", one, two),
        Change(5, "inserted", one, two),
        Change(6, "gone again", one, None),
        Change(7, "changed back", two, one),
        Change(8, "deleted", two, None),
        Change(9, "replaced", three, None),
        Change(10, "replaced", None, one),
        Change(11, "came and went twice", one, None),
        Change(12, "came and went twice", None, two),
        Change(13, "came and went twice", two, None),
    ]
    assert sorted(compact(changes), key=lambda change: change.micros) == [
        Change(5, "inserted", None, two),
        Change(7, "changed back", one, one),
        Change(8, "deleted", one, None),
        Change(10, "replaced", three, one),
        Change(13, "came and went twice", one, None),
    ]
    assert compact([]) == []


def _emulator(status: int) -> Any:
    """Return the least of an emulator: a table store and one transaction of one PartiQL write."""

    def set_item(table: dict[str, Any], pk: str, sk: str, item: dict[str, Any]) -> Any:
        old = table["items"].get(pk, {}).get(sk)
        table["items"].setdefault(pk, {})[sk] = item
        return old

    def execute_transaction(_: dict[str, Any]) -> tuple[int]:
        module._partiql_insert(module.table, {"v": {"N": "1"}})
        return (status,)

    def nothing(*_: Any) -> None:
        return None

    module = SimpleNamespace(
        table={"TableName": "t", "TableId": "id", "items": {}},
        emitted=[],
        _set_item=set_item,
        _remove_item=nothing,
        _build_change_record=nothing,
        _partiql_insert=lambda table, item: module._set_item(table, "a", "b", item),
        _partiql_update=nothing,
        _partiql_delete=nothing,
        _execute_transaction=execute_transaction,
        _emit_stream_event=lambda *event: module.emitted.append(event),
        _number_error=nothing,
        _number_size_bytes=nothing,
        _ddb_canonicalize_number=nothing,
        _extract_key_val=nothing,
    )
    return module


def test_only_transactions_that_succeed_are_journaled() -> None:
    for status, count in ((400, 0), (200, 1)):
        emulator = _emulator(status)
        writes = Writes(emulator, Clock())
        writes.install()
        writes.journals["id"] = journal = TableJournal(0)
        emulator._execute_transaction({})
        item = {"v": {"N": "1"}}
        assert [(c.key, c.old, c.new) for c in journal.changes] == [
            (("a", "b"), None, item)
        ] * count
        assert emulator.emitted == [("t", "INSERT", None, item)] * count


def test_writes_that_change_nothing_are_not_journaled() -> None:
    emulator = _emulator(200)
    writes = Writes(emulator, Clock())
    writes.install()
    writes.journals["id"] = journal = TableJournal(0)
    for number in ("1", "1", "2"):
        emulator._set_item(emulator.table, "a", "b", {"v": {"N": number}})
    assert [change.new for change in journal.changes] == [{"v": {"N": n}} for n in "12"]


def _item(*members: str, kind: str = "SS", beside: str = "1") -> dict[str, Any]:
    inner = {kind: list(members)}
    return {"set": inner, "l": {"L": [{"M": {"inside": inner}}]}, "n": {"N": beside}}


def test_a_set_has_no_order() -> None:
    item = _item("a", "b", "c")
    assert same(item, _item("c", "a", "b"))
    others = [_item("a", "b"), _item("a", "b", "d"), _item("c", "b", "a", beside="2")]
    others += [_item("c", "b", "a", kind="BS"), _item("a", "b", "c", kind="L"), {}]
    assert not any(same(item, other) or same(other, item) for other in others)
