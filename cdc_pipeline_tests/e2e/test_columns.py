"""Column rules and schema evolution in a whole pipeline, and what Glue shows of them."""

from typing import Any

import pytest

from cdc_pipeline.reconcile.compare import compare_with_source
from cdc_pipeline_tests.e2e.world import World

pytestmark = pytest.mark.slow

_CAPTURE = {
    "interval_seconds": 5,
    "poll_seconds": 0.02,
    "empty_polls": 2,
    "listing_lag_seconds": 0,  # the sandbox lists a new shard at once
}
_RULES = {"pk": {"hash": True}, "email": {"hash": True}, "ssn": {"drop": True}}


def _person(world: World, name: str, pk: str, **more: dict[str, Any]) -> None:
    world.put(name, pk, 1, email={"S": f"clear-{pk}"}, ssn={"S": "clear-ssn"}, **more)


def test_a_masked_copy_mirrors_the_masked_source(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 32)
    name = world.make_table("people")
    world.configure({"name": name, "columns": _RULES}, capture=_CAPTURE)
    for pk in ("clear-a", "clear-b"):
        _person(world, name, pk)
    world.bootstrap(name)
    _person(world, name, "clear-c", total={"N": "5"})
    world.delete(name, "clear-a")
    world.capture(name)
    world.build_cdc(name)
    compared = compare_with_source(world.table_lake(name))
    assert (compared.items, compared.differences) == (2, 0)
    world.publish(name)
    compared = compare_with_source(world.table_lake(name))
    assert (compared.items, compared.differences) == (2, 0)
    for view in ("current_state", "cdc", "history"):
        assert "clear-" not in str(world.rows(f"SELECT * FROM {name}.{view}", name))
    assert "clear-ssn" in str(world.rows(f"SELECT * FROM {name}.raw_stream", name))


@pytest.mark.parametrize("kind", ["s3"])
def test_glue_follows_the_schema(world: World) -> None:
    name = world.make_table("things")
    world.configure(name, capture=_CAPTURE)
    world.put(name, "a", n={"N": "1.5"}, t={"S": "x"})
    world.bootstrap(name)

    def columns() -> dict[str, tuple[str, str]]:
        found = world.client("glue").get_table(DatabaseName="cdc", Name=f"{name}_current_state")
        shown = found["Table"]["StorageDescriptor"]["Columns"]
        return {
            column["Name"]: (column["Type"], column["Parameters"]["iceberg.field.id"])
            for column in shown
            if column["Parameters"]["iceberg.field.current"] == "true"
        }

    before = columns()
    assert {k: v[0] for k, v in before.items() if k in "nt"} == {
        "n": "decimal(18,1)",
        "t": "string",
    }
    world.put(name, "a", n={"N": "123456789012345678901.5"}, new={"NS": ["1"]})
    world.capture(name)
    world.publish(name)
    after = columns()
    assert after["n"] == ("decimal(38,1)", before["n"][1]), "widened in place"
    assert after["new"][0] == "array<bigint>"
    assert "t" not in after
    world.put(name, "a", n={"N": "1E-100"})
    world.capture(name)
    world.publish(name)
    assert columns()["n"][0] == "string"
    assert columns()["n"][1] != before["n"][1], "no promotion to text: another field"
