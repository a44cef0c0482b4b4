"""Edits of the settings file: what was not asked for stays, character by character."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import cdc_pipeline
from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.edit import (
    edited_settings,
    new_text,
    with_tables,
    without_table,
    write_settings,
)
from cdc_pipeline.settings.load import parse_table, read_settings

PATH = Path("cdc_pipeline.yaml")
EXAMPLE = (Path(cdc_pipeline.__file__).parents[1] / "cdc_pipeline.example.yaml").read_text("utf-8")
ADDED: list[dict[str, Any]] = [{"name": "yes", "owner": "team:x"}, {"name": "123", "heal": "ask"}]
BLOCK = "  - name: 'yes'\n    owner: team:x\n  - name: '123'\n    heal: ask\n"

LAYOUTS = [
    ("lake: a\ntables:\n- name: abc\n", "lake: a\ntables:\n- name: abc\n- name: 'yes'\n"),
    (
        "lake: a\ntables:\n    -   name: abc",
        "lake: a\ntables:\n    -   name: abc\n    - name: 'yes'\n",
    ),
    (
        "lake: a\ntables: [{name: abc}]  # t\n",
        "lake: a\ntables: [{name: abc}, {name: 'yes'}]  # t\n",
    ),
    ("{lake: a, tables: [{name: abc}]}", "{lake: a, tables: [{name: abc}, {name: 'yes'}]}"),
    ("lake: a\n", "lake: a\n\ntables:\n  - name: 'yes'\n"),
    ("tables:  # none\nlake: a\n", "tables:  # none\n  - name: 'yes'\nlake: a\n"),
    ("tables: []\nlake: a", "tables: [{name: 'yes'}]\nlake: a"),
    (
        "tables:\n  - name: abc # x\n    # owner: me\n\n# the lake\nlake: a\n",
        "tables:\n  - name: abc # x\n    # owner: me\n  - name: 'yes'\n\n# the lake\nlake: a\n",
    ),
    (
        "tables:\n  - columns:\n      a: { drop: true }\n    name: abc\nlake: a # end",
        "tables:\n  - columns:\n      a: { drop: true }\n    name: abc\n  - name: 'yes'\n"
        "lake: a # end\n",
    ),
]


@pytest.mark.parametrize(("before", "after"), LAYOUTS)
def test_tables_are_added_whatever_the_layout(before: str, after: str) -> None:
    assert with_tables(before, [{"name": "yes"}]) == after
    assert read_settings(after, PATH).tables[-1].name == "yes"


def test_the_example_keeps_every_comment() -> None:
    edited = with_tables(EXAMPLE, ADDED)
    assert edited == EXAMPLE + BLOCK
    before = read_settings(EXAMPLE, PATH)
    tables = [*before.tables, *map(parse_table, ADDED)]
    assert edited_settings(edited, PATH, before, tables).tables == tables
    assert without_table(without_table(edited, 3), 2) == EXAMPLE


def test_a_table_goes_with_the_comments_about_it() -> None:
    text = (
        "tables:\n  # sold things\n  - name: abc\n    # owner: me\n\n  # people\n  - name: def\n"
        "# the lake\nlake: a\n"
    )
    assert without_table(text, 0) == ("tables:\n\n  # people\n  - name: def\n# the lake\nlake: a\n")
    assert without_table(text, 1) == (
        "tables:\n  # sold things\n  - name: abc\n    # owner: me\n\n# the lake\nlake: a\n"
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_table_leaves_a_flow_list(position: int) -> None:
    text = "lake: a\ntables: [{name: aaa}, {name: bbb} , {name: ccc}] # t\n"
    left = yaml.safe_load(without_table(text, position))["tables"]
    names = [name for n, name in enumerate(["aaa", "bbb", "ccc"]) if n != position]
    assert [table["name"] for table in left] == names


_words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)


@given(_words, st.lists(st.from_regex(r"[a-zA-Z0-9_.-]{3,12}", fullmatch=True), min_size=1))
def test_whatever_is_written_is_read_back(word: str, names: list[str]) -> None:
    tables = [{"name": name, "group": word} for name in names]
    made = yaml.safe_load(new_text({"lake": word}, tables))
    assert made == {"lake": word, "tables": tables}
    for before in ("tables:\n- name: x\n", "tables: [{name: x}]"):
        assert yaml.safe_load(with_tables(before, tables))["tables"][1:] == tables


def test_what_cannot_be_edited_safely_is_left_to_people() -> None:
    text = "lake: a\ntables:\n  - &base {name: abc}\n"
    before = read_settings(text, PATH)
    other = "lake: b\ntables:\n  - name: abc\n  - name: def\n"
    with pytest.raises(SettingsError, match="cannot be edited safely"):
        edited_settings(other, PATH, before, [*before.tables, parse_table({"name": "def"})])
    with pytest.raises(SettingsError, match="cannot be edited safely"):
        edited_settings(text, PATH, before, [parse_table({"name": "def"})])


def test_the_file_changes_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_settings(link, "new: ä\r\n")
    assert real.read_bytes() == "new: ä\r\n".encode()
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(SettingsError, match="disk full"):
        write_settings(link, "broken")
    assert real.read_bytes() == "new: ä\r\n".encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.yaml", "real.yaml"]
