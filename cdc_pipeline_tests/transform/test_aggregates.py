"""Aggregates: one SQL file each."""

from pathlib import Path

import pytest

from cdc_pipeline.transform.aggregates import (
    Aggregate,
    broken_aggregates,
    load_aggregates,
    tables_named,
)


def _load(folder: Path, text: str, name: str = "revenue.sql") -> Aggregate:
    (folder / name).write_text(text, "utf-8")
    (aggregate,) = load_aggregates(folder)
    return aggregate


def test_the_header_describes_it(tmp_path: Path) -> None:
    text = (
        "-- description:  What was sold,  by day: 日本  \n"
        "-- partitioned: daily\n"
        "-- owner: team:sales\n"
        "SELECT $day AS day, count(*) AS n FROM orders.current_state\n"
    )
    assert _load(tmp_path, text) == Aggregate(
        name="revenue",
        sql=text,
        description="What was sold,  by day: 日本",
        daily=True,
        inputs=(("orders", "current_state"),),
        owner="team:sales",
    )


def test_the_header_may_be_left_out(tmp_path: Path) -> None:
    found = _load(tmp_path, "SELECT 1 AS one\n")
    assert (found.daily, found.owner, found.inputs) == (False, None, ())
    assert "revenue.sql" in found.description
    assert found.table == "aggregates_revenue"


def test_files_are_loaded_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.sql", "a.sql", "c.txt"):
        (tmp_path / name).write_text("SELECT 1 AS one")
    assert [a.name for a in load_aggregates(tmp_path)] == ["a", "b"]
    assert load_aggregates(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("sql", "inputs"),
    [
        ("SELECT 1", ()),
        ("SELECT * FROM orders.cdc", (("orders", "cdc"),)),
        ('SELECT * FROM "Orders"."CDC"', (("orders", "cdc"),)),
        ("SELECT * FROM b.x JOIN a.y USING (id), a.z", (("a", "y"), ("a", "z"), ("b", "x"))),
        ("SELECT * FROM a.x UNION ALL SELECT * FROM a.x", (("a", "x"),)),
        ("SELECT (SELECT max(n) FROM a.y) FROM a.x", (("a", "x"), ("a", "y"))),
        ("WITH t AS (SELECT * FROM a.x) SELECT * FROM t", (("a", "x"),)),
        (
            "WITH x AS (SELECT * FROM a.x) SELECT * FROM x JOIN b.x USING (i)",
            (("a", "x"), ("b", "x")),
        ),
        ("WITH t AS (SELECT 1), u AS (SELECT * FROM t, a.x) SELECT * FROM u", (("a", "x"),)),
        ("SELECT * FROM aggregates.revenue", (("aggregates", "revenue"),)),
        ("SELECT 'FROM a.x' AS text -- FROM a.y", ()),
        ("SELECT * FROM a.x WHERE id IN (SELECT id FROM a.y)", (("a", "x"), ("a", "y"))),
    ],
)
def test_inputs_are_the_views_a_statement_reads(
    sql: str, inputs: tuple[tuple[str, str], ...]
) -> None:
    assert tables_named(sql) == inputs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SELECT FROM WHERE", "not valid SQL"),
        ("", "not valid SQL"),
        ("SELECT 'open", "not valid SQL"),
        ("-- partitioned: hourly\nSELECT 1", "found 'hourly'; allowed: 'daily', 'none'"),
        ("-- partitioned: daily\nSELECT 1", "only one of the two"),
        ("-- partitioned: daily\n-- of $day\nSELECT 1", "only one of the two"),
        ("SELECT $day", "only one of the two"),
    ],
)
def test_mistakes_name_the_file(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "revenue.sql").write_text(text)
    (tmp_path / "sound.sql").write_text("SELECT 1 AS one")
    assert [a.name for a in load_aggregates(tmp_path)] == ["sound"]
    (broken,) = broken_aggregates(tmp_path)
    assert broken.name == "revenue"
    assert said in broken.error
    assert str(tmp_path / "revenue.sql") in broken.error
    assert "\x1b" not in broken.error


@pytest.mark.parametrize(
    ("file", "name"),
    [("Revenue.sql", "revenue"), ("my-revenue.sql", "my_revenue"), ("日本.sql", "__")],
)
def test_names_are_sql_names(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("SELECT 1")
    assert load_aggregates(tmp_path) == []
    (broken,) = broken_aggregates(tmp_path)
    assert broken.name == name
    assert "[a-z][a-z0-9_]*" in broken.error


def test_a_broken_one_takes_no_sound_ones_name(tmp_path: Path) -> None:
    for file in ("revenue.sql", "Revenue.sql", "REVENUE.sql"):
        (tmp_path / file).write_text("SELECT 1")
    assert [a.name for a in load_aggregates(tmp_path)] == ["revenue"]
    assert {b.name for b in broken_aggregates(tmp_path)} == {"revenue_2", "revenue_3"}
    (tmp_path / "revenue.sql").write_text("")  # its name stays its own
    errors = {b.name: b.error for b in broken_aggregates(tmp_path)}
    assert set(errors) == {"revenue", "revenue_2", "revenue_3"}
    assert "revenue.sql: not valid SQL" in errors["revenue"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.sql").write_bytes(b"SELECT '\xff'")
    (tmp_path / "folder.sql").mkdir()
    (tmp_path / "link.sql").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sound.sql").write_text("SELECT 1 AS one")
    assert [a.name for a in load_aggregates(tmp_path)] == ["sound"]
    errors = {b.name: b.error for b in broken_aggregates(tmp_path)}
    assert set(errors) == {"bytes", "folder", "link"}
    assert "bytes.sql is not UTF-8" in errors["bytes"]
    assert "folder.sql cannot be read: Is a directory" in errors["folder"]
    assert "link.sql cannot be read: No such file" in errors["link"]


def test_aggregates_that_wait_for_each_other(tmp_path: Path) -> None:
    """What is in a circle is broken; what reads one of these is not."""
    reads = {"a": "b", "b": "c", "c": "a", "d": "c", "self": "self", "e": "d", "lost": "nothing"}
    for name, source in reads.items():
        (tmp_path / f"{name}.sql").write_text(f"SELECT * FROM aggregates.{source}")
    assert [a.name for a in load_aggregates(tmp_path)] == ["d", "e"]
    errors = {b.name: b.error for b in broken_aggregates(tmp_path)}
    assert set(errors) == {"a", "b", "c", "self", "lost"}
    assert all(f"{tmp_path / name}.sql" in error for name, error in errors.items())
    assert "in a circle: " in errors["a"]
    assert "self reads self" in errors["self"]
    assert "aggregates.nothing" in errors["lost"]


@pytest.mark.parametrize("owner", ["nobody", "ö@example.com", "a@example.technology", "team:"])
def test_owners_are_such_as_dagster_takes(owner: str, tmp_path: Path) -> None:
    (tmp_path / "revenue.sql").write_text(f"-- owner: {owner}\nSELECT 1 AS one", "utf-8")
    (broken,) = broken_aggregates(tmp_path)
    assert f"owner: found {owner!r}" in broken.error


def test_the_repositorys_own_aggregates_load() -> None:
    found = {a.name: a for a in load_aggregates(Path(__file__).parents[2] / "aggregates")}
    assert found["order_revenue_by_country"].daily
    assert found["customer_lifetime_value"].inputs == (
        ("customers", "current_state"),
        ("orders", "current_state"),
    )
