"""Tables come into the settings file all together or not at all."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cdc_pipeline.cli import main
from cdc_pipeline.settings.load import PATH_VARIABLE, load_settings

BEFORE = "lake: ./lake # local\nexport: {bucket: abc}\ntables:\n  - name: orders # sold\n"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.yaml"
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    path.write_text(BEFORE)
    return path


def tables(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["tables", *arguments])


def listed(folder: Path, text: str) -> str:
    source = folder / "tables.csv"
    source.write_text(text)
    return str(source)


def test_names_and_a_file(path: Path, tmp_path: Path) -> None:
    done = tables("add", "a.b", "customers", "--no-check", "--owner", "team:sales")
    assert done.exit_code == 0, done.output
    assert "(2): a.b, customers" in done.output
    source = listed(tmp_path, "name,owner,ttl_archive\ncarts,team:web,true\nusers,,\n")
    done = tables("add", "--from", source, "--no-check", "--region", "eu-west-1")
    assert done.exit_code == 0, done.output
    assert path.read_text() == (
        f"{BEFORE}"
        "  - name: a.b\n    owner: team:sales\n"
        "  - name: customers\n    owner: team:sales\n"
        "  - name: carts\n    owner: team:web\n    region: eu-west-1\n    ttl_archive: true\n"
        "  - name: users\n    region: eu-west-1\n"
    )


def test_every_bad_row_is_told_and_nothing_is_added(path: Path, tmp_path: Path) -> None:
    rows = ["customers", "no good", "ORDERS", "customers", "carts,,,kafka", "a,b,c,d,e,f"]
    done = tables("add", "--no-check", "--from", listed(tmp_path, "\n".join(rows)))
    assert done.exit_code == 1
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()[1:-1]] == [
        f"row {n}" for n in (2, 3, 4, 5, 6)
    ]
    for said in ("found 'no good'", "'orders' and 'ORDERS'", "listed twice", "found 'kafka'"):
        assert said in done.stderr
    assert path.read_text() == BEFORE


@pytest.mark.parametrize("row", ["a,b,c,d,e,f", "no good"])
def test_one_bad_row_is_enough(path: Path, tmp_path: Path, row: str) -> None:
    done = tables("add", "--no-check", "--from", listed(tmp_path, f"customers\n{row}\n"))
    assert done.exit_code == 1
    assert "row 2: " in done.stderr
    assert path.read_text() == BEFORE


def test_the_first_table_makes_the_file(path: Path) -> None:
    path.unlink()
    assert "add --lake" in tables("add", "orders").output
    done = tables("add", "orders", "--lake", "s3://b/c", "--region", "eu-west-1", "--no-check")
    assert done.exit_code == 0, done.output
    settings = load_settings()
    assert (settings.lake, settings.region) == ("s3://b/c", "eu-west-1")
    assert [table.model_dump(exclude_unset=True) for table in settings.tables] == [
        {"name": "orders"}
    ]
    assert tables("add", "more", "--lake", "s3://x").exit_code == 2


def test_a_file_without_tables_gets_them(path: Path) -> None:
    path.write_text("lake: a # b\ntables: []\n")
    assert tables("add", "orders", "--no-check").exit_code == 0
    assert path.read_text() == "lake: a # b\ntables: [{name: orders}]\n"
    path.write_text("lake: 7\n")
    refused = tables("add", "orders", "--no-check")
    assert refused.exit_code == 1
    assert "lake: found 7" in refused.stderr
    assert path.read_text() == "lake: 7\n"


def test_removing_asks_and_says_what_stays(path: Path) -> None:
    tables("add", "customers", "--no-check")
    assert CliRunner().invoke(main, ["tables", "remove", "customers"], input="n\n").exit_code == 1
    assert len(load_settings().tables) == 2
    done = tables("remove", "customers", "--yes")
    assert done.exit_code == 0, done.output
    assert path.read_text() == BEFORE
    folder = path.parent / "lake"
    for place in ("dynamo-cdc/cdc/customers", "_cdc/cdc/customers", "iceberg/cdc/customers_*"):
        assert f"{folder}/{place}" in done.output
    last = tables("remove", "orders", "--yes")
    assert last.exit_code == 1
    assert "the only table" in last.stderr
    assert tables("remove", "nobody", "--yes").exit_code == 1


def test_the_list(path: Path) -> None:
    role = "arn:aws:iam::123456789012:role/reader"
    tables("add", "orders", "--alias", "west", "--role-arn", role, "--no-check")
    shown = tables("list")
    assert "west" in shown.output
    assert "123456789012" in shown.output
    assert "owner" not in shown.output
    assert tables("list", "--format", "json").output.count('"name": "orders"') == 2
