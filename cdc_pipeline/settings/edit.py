"""Text edits of the settings file: add and remove tables, keep every other character."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.load import read_settings
from cdc_pipeline.settings.model import Settings

_NEW = """\
# Settings of cdc_pipeline. cdc_pipeline.example.yaml explains more of them, and
# docs/settings.schema.json lists all.
"""


def new_text(top: Mapping[str, str], tables: Sequence[Mapping[str, Any]]) -> str:
    """Build a settings file with these scalars and tables."""
    scalars = "".join(f"{name}: {_scalar(value)}\n" for name, value in top.items())
    return f"{_NEW}{scalars}\ntables:\n{_block(tables, '  ')}"


def with_tables(text: str, tables: Sequence[Mapping[str, Any]]) -> str:
    """Add tables to the settings file's text, after the present ones."""
    key, listed = _tables_node(text)
    if key is None:
        return f"{_with_newline(text)}\ntables:\n{_block(tables, '  ')}"
    if not isinstance(listed, yaml.SequenceNode):  # `tables:` without a value
        return _insert_after(text, key.end_mark.line, _block(tables, "  "))
    if listed.flow_style:
        added = ", ".join(map(_flow, tables))
        if not listed.value:
            return _spliced(text, listed.end_mark.index - 1, added)
        return _spliced(text, listed.value[-1].end_mark.index, f", {added}")
    column = listed.start_mark.column
    last = _last_line_with_comments(text, listed, column)
    return _insert_after(text, last, _block(tables, " " * column))


def without_table(text: str, position: int) -> str:
    """Remove one table and its comments from the settings file's text.

    Its comments are the lines directly above it, and those after it with a deeper indent than its
    dash.
    """
    _, listed = _tables_node(text)
    assert isinstance(listed, yaml.SequenceNode)  # checked when the settings were read
    node = listed.value[position]
    if listed.flow_style:
        first, last = node.start_mark.index, node.end_mark.index
        if position:
            first = listed.value[position - 1].end_mark.index
        elif len(listed.value) > 1:
            last = listed.value[1].start_mark.index
        return text[:first] + text[last:]
    lines, column = text.splitlines(keepends=True), listed.start_mark.column
    first, last = node.start_mark.line, _last_line_with_comments(text, node, column)
    while first and _is_comment(lines[first - 1], column, column):
        first -= 1
    return "".join([*lines[:first], *lines[last + 1 :]])


def write_settings(path: Path, text: str) -> None:
    """Replace the file atomically with `text`; raises `SettingsError`."""
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).chmod(mode)
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}") from None


def edited_settings(text: str, path: Path, before: Settings | None, tables: list[Any]) -> Settings:
    """Check an edited text: it has `tables`, and all other settings as before.

    Raises `SettingsError`, for example for a file with a layout that cannot be edited.
    """
    after = read_settings(text, path)
    is_unchanged = before is None or _others(before) == _others(after)
    if not is_unchanged or after.tables != tables:
        raise SettingsError(
            f"{path} has a layout that cannot be edited safely",
            fix="write each table on lines of its own below `tables:`, or edit it by hand",
        )
    return after


def _others(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(exclude={"tables"})


def _tables_node(text: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "tables":
            return key, value
    return None, None


def _last_line(node: yaml.Node) -> int:
    """Return the last line with content; a block's own end is after its trailing comments."""
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        return _last_line(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        return _last_line(node.value[-1])
    mark = node.end_mark
    return mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else mark.line


def _last_line_with_comments(text: str, node: yaml.Node, column: int) -> int:
    """Return the last line, including later comments with a deeper indent than the dash."""
    lines, last = text.splitlines(), _last_line(node)
    while last + 1 < len(lines) and _is_comment(lines[last + 1], column + 1):
        last += 1
    return last


def _insert_after(text: str, line: int, block: str) -> str:
    lines = _with_newline(text).splitlines(keepends=True)
    return "".join([*lines[: line + 1], block, *lines[line + 1 :]])


def _spliced(text: str, index: int, added: str) -> str:
    return text[:index] + added + text[index:]


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def _is_comment(line: str, least: int, most: int | None = None) -> bool:
    column = len(line) - len(line.lstrip())
    return line.lstrip().startswith("#") and least <= column <= (column if most is None else most)


def _block(tables: Sequence[Mapping[str, Any]], indent: str) -> str:
    lines = []
    for table in tables:
        for number, (name, value) in enumerate(table.items()):
            lines.append(f"{indent}{'  ' if number else '- '}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _flow(table: Mapping[str, Any]) -> str:
    dumped = yaml.safe_dump(
        dict(table), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return dumped.strip()


def _scalar(value: Any) -> str:
    """Dump a scalar as YAML, quoted if needed."""
    return yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
