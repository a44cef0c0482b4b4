"""Bodies of Dagster's definitions: they fetch, call a use case, and return."""

import ast
from collections.abc import Iterator
from pathlib import Path

import cdc_pipeline.defs

_FOLDER = Path(cdc_pipeline.defs.__file__).parent
_MOST_LINES = 15
_KINDS = ("asset", "asset_check", "job", "multi_asset", "op", "schedule")


def _is_definition(decorator: ast.expr) -> bool:
    """Whether it is `@dg.op`, `@dg.asset(...)` or another one of `_KINDS`."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if not (isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)):
        return False
    return called.value.id == "dg" and called.attr in _KINDS


def _bodies() -> Iterator[tuple[str, int]]:
    """Name of each definition, and the lines of its body without the docstring."""
    for path in sorted(_FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(map(_is_definition, node.decorator_list)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield f"{path.stem}.{node.name}", lines


def test_bodies_are_short() -> None:
    bodies = dict(_bodies())
    assert {"capture.capture_streams", "heal.heal_gaps", "table.cdc"} <= bodies.keys()
    assert {name: lines for name, lines in bodies.items() if lines > _MOST_LINES} == {}
