"""Columns of current_state over time: what widens, what is pinned, what a contract refuses."""

from decimal import Decimal
from typing import Any

import pytest

from cdc_pipeline.core.errors import SchemaContractError
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.current_state import PublishResult, publish_current_state
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change, plain_view


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _use(built: LakeBuilder, **table: Any) -> None:
    root = built.lake.settings.lake_folder
    raw = {"lake": "lake", "tables": [{"name": "orders", **table}]}
    raw["handover_margin_seconds"] = MARGIN_US / 1_000_000
    raw["clock_margin_seconds"] = 0
    built.lake = Lake.open(parse_settings(raw, root.parent / "settings.yaml"))


def _ready(built: LakeBuilder, items: dict[str, dict[str, Any]]) -> None:
    built.start()
    built.stage(items)
    built.read_to(START_US + MARGIN_US)


def _publish(built: LakeBuilder) -> PublishResult:
    return publish_current_state(built.table_lake)


def _view(built: LakeBuilder, columns: str = "*") -> list[dict[str, Any]]:
    return plain_view(built.lake, f"SELECT {columns} FROM orders.current_state ORDER BY _key")


def _told(result: PublishResult) -> list[tuple[str, str, str | None, str | None]]:
    return [
        (c.kind, c.attribute, c.before and c.before.type, c.after and c.after.type)
        for c in result.changes or ()
    ]


def _n(number: str) -> dict[str, Any]:
    return {"N": number}


def test_a_publication_tells_what_became_of_the_columns(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _n("1"), "t": {"S": "x"}, "gone": {"S": ""}}, "b": {"n": _n("2")}})
    assert _publish(built).changes is None
    built.land(
        [
            change("a", 1, {"n": _n("1.5"), "t": _n("1"), "Id": {"BOOL": True}}),
            change("b", 2, {"n": _n("2")}),
        ]
    )
    assert _told(_publish(built)) == [
        ("added", "Id", None, "boolean"),
        ("gone", "gone", "string", None),
        ("widened", "n", "int64", "decimal(18,1)"),
        ("retyped", "t", "string", "int64"),
    ]
    assert _told(_publish(built)) == []


def test_types_widen_and_stay_wide_and_old_values_stay_exact(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _n("9" * 18)}, "b": {}})
    types = {c.attribute: c.type for c in _publish(built).columns}
    assert types["n"] == "int64"
    for number, (value, kind, old) in enumerate(
        [
            ("1.5", "decimal(38,1)", Decimal("9" * 18)),
            ("1E-100", "string", "9" * 18),
            ("7", "string", "9" * 18),
        ],
        start=1,
    ):
        built.land([change("b", number, {"n": _n(value)})])
        merged = _view(built, "n")
        result = _publish(built)
        types = {c.attribute: c.type for c in result.columns}
        assert types["n"] == kind
        assert merged == _view(built, "n")
        assert _view(built, "n")[0] == {"n": old}


def _fields(built: LakeBuilder) -> dict[str, tuple[int, str]]:
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    return {f.name: (f.field_id, str(f.field_type)) for f in table.schema().fields}


def test_the_iceberg_schema_evolves_in_place_and_the_past_stays_readable(
    built: LakeBuilder,
) -> None:
    _ready(built, {"a": {"n": _n("1.5"), "l": {"NS": ["1.5"]}, "t": {"S": "x"}}})
    first = _publish(built).table.current_snapshot()
    before = _fields(built)
    big = "9" * 20
    built.land([change("b", 1, {"n": _n(f"{big}.5"), "l": {"NS": [f"{big}.5"]}, "new": _n("1")})])
    second = _publish(built).table.current_snapshot()
    after = _fields(built)
    assert {name: after[name][0] for name in before} == {n: f[0] for n, f in before.items()}
    assert (before["n"][1], after["n"][1]) == ("decimal(18, 1)", "decimal(38, 1)")
    assert after["l"][1] == "list<decimal(38, 1)>"
    built.land([change("c", 2, {"n": _n("1E-100")})])
    _publish(built)
    last = _fields(built)
    assert last["n"][1] == "string"
    assert last["n"][0] not in {f[0] for f in after.values()}, "no promotion: another field"
    assert {n: f for n, f in last.items() if n != "n"} == {
        n: f for n, f in after.items() if n != "n"
    }
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert first is not None
    assert second is not None
    (old,) = table.scan(snapshot_id=first.snapshot_id).to_arrow().to_pylist()
    assert (old["n"], old["l"], old["t"]) == (Decimal("1.5"), [Decimal("1.5")], "x")
    assert "new" not in old
    rows = table.scan(snapshot_id=second.snapshot_id).to_arrow().to_pylist()
    assert sorted(row["n"] for row in rows) == [Decimal("1.5"), Decimal(f"{big}.5")]
    assert sorted(row["n"] for row in table.scan().to_arrow().to_pylist()) == sorted(
        ["1.5", f"{big}.5", "1E-100"]
    )


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"n": _n("1"), "new": {"S": "v"}}, "attribute 'new' is new (string)"),
        ({"n": _n("1.5")}, "attribute 'n' was int64, is now decimal(18,1)"),
    ],
)
def test_a_contract_refuses_and_readers_keep_the_last_version(
    item: dict[str, Any], said: str, built: LakeBuilder
) -> None:
    _use(built, schema_contract="refuse")
    _ready(built, {"a": {"n": _n("1"), "t": {"S": "secret"}}, "b": {"n": _n("2")}})
    _publish(built)
    built.land([change("b", 1, {"n": _n("3")})])
    _publish(built)
    shown, files = _view(built), data_files(_publish(built).table)
    built.land([change("a", 2, {"n": _n("4"), "t": {"S": "secret"}}), change("b", 3, None)])
    assert len(_view(built)) == 1, "what the contract allows is as fresh as ever"
    built.land([change("c", 4, item)])
    assert _view(built) == shown
    with pytest.raises(SchemaContractError) as refused:
        _publish(built)
    assert said in refused.value.message
    assert "orders/current_state: schema_contract is 'refuse'" in refused.value.message
    assert "secret" not in str(refused.value)
    assert "schema_contract: evolve" in (refused.value.fix or "")
    assert _view(built) == shown
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert data_files(table) == files
    _use(built)
    _publish(built)
    assert {row["_key"]: row["_item"] for row in _view(built)} == built.items()


def test_the_main_type_of_an_attribute_is_part_of_the_contract(built: LakeBuilder) -> None:
    _use(built, schema_contract="refuse")
    _ready(built, {"a": {"n": _n("1")}})
    _publish(built)
    built.land([change(name, n, {"n": {"S": "x"}}) for n, name in enumerate("bc", start=1)])
    assert _told(_publish(built)) == []
    built.land([change("a", 9, {"n": {"S": "x"}})])
    with pytest.raises(SchemaContractError, match=r"attribute 'n' was int64, is now string"):
        _publish(built)


def test_what_vanishes_or_has_a_rule_is_no_breach(built: LakeBuilder) -> None:
    rules = {"n": {"type": "decimal(10,2)"}, "new": {"type": "string"}, "x": {"drop": True}}
    _use(built, schema_contract="refuse")
    _ready(built, {"a": {"n": _n("1"), "t": {"S": "x"}}})
    _publish(built)
    _use(built, schema_contract="refuse", columns=rules)
    built.land([change("a", 1, {"n": _n("1.555"), "new": _n("5"), "x": {"S": "x"}})])
    result = _publish(built)
    assert _told(result) == [
        ("retyped", "n", "int64", "decimal(10,2)"),
        ("added", "new", None, "string"),
        ("gone", "t", "string", None),
    ]
    (row,) = _view(built)
    assert (row["n"], row["new"], row["_rescued"]) == (None, "5", '{"n":{"N":"1.555"}}')


def test_an_empty_table_promises_no_columns(built: LakeBuilder) -> None:
    _use(built, schema_contract="refuse")
    _ready(built, {})
    _publish(built)
    built.land([change("a", 1, {"n": _n("1")})])
    assert len(_view(built)) == 1
    assert _publish(built).items == 1


def test_a_pinned_type_holds_in_the_view_before_and_after_it_is_published(
    built: LakeBuilder,
) -> None:
    _ready(built, {"a": {"n": _n("5"), "m": _n("1")}, "b": {"n": _n("9" * 38), "m": _n("1")}})
    _publish(built)
    _use(built, columns={"n": {"type": "decimal(10,2)"}, "late": {"type": "int64"}})
    built.land([change("c", 1, {"n": _n("1.555"), "late": _n("2.5")})])
    rows = _view(built)
    assert [row["n"] for row in rows] == ["5", "9" * 38, "1.555"], "types change when published"
    assert rows[2]["late"] is None
    result = _publish(built)
    assert result.changes_folded == 1
    rows = _view(built)
    assert [row["n"] for row in rows] == [Decimal("5.00"), None, None]
    assert rows[2]["_rescued"] == '{"late":{"N":"2.5"},"n":{"N":"1.555"}}'
    built.land([change("d", 2, {"n": _n("2.25")}), change("e", 3, {"n": _n("0.001")})])
    merged = _view(built)
    assert merged[3]["n"] == Decimal("2.25")
    assert merged[4]["_rescued"] == '{"n":{"N":"0.001"}}'
    _publish(built)
    assert _view(built) == merged
    _use(built)
    assert _publish(built).changes_folded == 0
    assert [row["n"] for row in _view(built)][:2] == ["5", "9" * 38]
