"""Entities in the settings: what they say, and what is refused by name."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.items.entities import Condition, Entity, classifier
from cdc_pipeline.settings.load import parse_settings, settings_schema
from cdc_pipeline.settings.table import Table


def _raw(*entities: Any, **more: Any) -> dict[str, Any]:
    shop = {"name": "shop", "entities": list(entities), **more}
    return {"lake": "lake", "tables": [shop, {"name": "shop_old"}]}


def _table(*entities: Any, **more: Any) -> Table:
    return parse_settings(_raw(*entities, **more), Path("s.yaml")).tables[0]


_GOOD: list[dict[str, Any]] = [
    {"name": "customer", "when": {"type": "customer", "version": [1, 2]}},
    {
        "name": "order",
        "when": {"pk": {"prefix": "c#"}, "sk": {"regex": "o#[0-9]+"}},
        "table": True,
        "flatten": {"depth": 2},
    },
    {"name": "note", "when": {"type": {"equals": ["note"]}}, "flatten": {}},
]


def test_what_they_say() -> None:
    table = _table(*_GOOD)
    assert [rule.entity() for rule in table.entities] == [
        Entity(
            "customer",
            (
                Condition("type", (("S", "customer"),)),
                Condition("version", (("N", "1"), ("N", "2"))),
            ),
        ),
        Entity("order", (Condition("pk", prefix="c#"), Condition("sk", regex="o#[0-9]+")), 2),
        Entity("note", (Condition("type", (("S", "note"),)),), 1),
    ]
    assert [rule.table for rule in table.entities] == [False, True, False]
    jsonschema.validate(_raw(*_GOOD), settings_schema())


def _one(**more: Any) -> dict[str, Any]:
    return {"name": "order", "when": {"type": "order"}, **more}


@pytest.mark.parametrize(
    ("entity", "said"),
    [
        (_one(name="current_state"), "'current_state': the name is reserved by the lake"),
        (_one(name="snapshot"), "the name is reserved by the lake"),
        (_one(name="replica_x"), "the name is reserved by the lake"),
        (_one(name="Order"), "name: found 'Order'"),
        (_one(name="old_cdc", table=True), "a name of table 'shop_old'; rename the entity"),
        (_one(wen={}), "entities.0.wen: unknown key; allowed: name, when, table, flatten"),
        (_one(when={}), "when: found {}"),
        (_one(when={"type": True}), "when.type: found True; give a text, a whole number"),
        (_one(when={"type": [1.5]}), "give a text, a whole number, a list of these"),
        (_one(when={"type": []}), "give exactly one of a value"),
        (_one(when={"type": {"prefix": "a", "regex": "b"}}), "give exactly one of a value"),
        (_one(when={"type": {"prefix": ""}}), "give exactly one of a value"),
        (_one(when={"type": {"prefx": "a"}}), "unknown key; allowed: equals, prefix, regex"),
        (_one(when={"type": {"regex": "("}}), "'(' is no regular expression"),
        (_one(when={"type": 10**38}), "38 digits at most"),
        (_one(flatten={"depth": 0}), "flatten.depth: found 0"),
        (_one(flatten={"depth": 32}), "flatten.depth: found 32"),
    ],
)
def test_what_is_refused(entity: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        _table(entity)
    assert said in str(refused.value)


def test_entities_stand_beside_each_other() -> None:
    with pytest.raises(SettingsError, match="entity 'order' is listed twice"):
        _table(_one(), _one(when={"type": "other"}))
    with pytest.raises(SettingsError, match=r"'draft' can have no items: .* 'order'"):
        _table(_one(), {"name": "draft", "when": {"type": "order", "is_draft": "yes"}})
    assert _table({"name": "draft", "when": {"type": "order", "is_draft": "yes"}}, _one())


@pytest.mark.parametrize("rule", [{"hash": True}, {"drop": True}, {"mask": "x"}])
def test_an_attribute_that_readers_do_not_have_splits_nothing(rule: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="entity 'order' uses attribute 'type'"):
        _table(_one(), columns={"type": rule})
    assert _table(_one(), columns={"type": {"type": "string"}, "other": rule})


def test_the_example_of_the_documents_splits_as_it_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "entities.md").read_text("utf-8")
    raw = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    table = parse_settings({"lake": "lake", **raw}, Path("s.yaml")).tables[0]
    classify = classifier([rule.entity() for rule in table.entities])
    rows = re.findall(r"^\| `(\w#\w+)` \| `(\w#\w+)` \|.*\| (.*) \|$", text, re.MULTILINE)
    found = [classify({"pk": {"S": pk}, "sk": {"S": sk}}) for pk, sk, _ in rows]
    assert found == ["customer", "product", "warehouse", "stock", "order", "order_line"]
    said = ["a customer", "a product", "a warehouse", "stock: of", "an order", "a line of"]
    assert all(row[2].startswith(start) for row, start in zip(rows, said, strict=True))
