"""The journal and the compression of exports, without a server."""

import gzip
from types import SimpleNamespace
from typing import Any

from cdc_pipeline.sandbox.exports import _gzip
from cdc_pipeline.sandbox.journal import Change, Clock, TableJournal, roll_back
from cdc_pipeline.sandbox.streams import Writes


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
