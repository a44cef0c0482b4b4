"""Messages that the runbook quotes are those of the code.

In the runbook, `...` stands for values, and `;` separates messages of one row. A row in italics
describes messages that others make.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cdc_pipeline
from cdc_pipeline_tests.docs.pages import ROOT

_PACKAGE = Path(cdc_pipeline.__file__).parent
_PAGE = ROOT / "docs" / "runbook.md"
_VALUE = "\0"
"""Stands for an expression in an f-string: no message quotes it."""


def _quotes() -> Iterator[str]:
    """The first cells of the tables of messages and warnings, each message by itself."""
    heading = ""
    for line in _PAGE.read_text("utf-8").splitlines():
        if not line.startswith("| "):
            heading = heading if line.startswith("|-") else ""
            continue
        cell = line.split(" | ")[0].removeprefix("| ")
        if heading in ("message", "warning") and not cell.startswith("*"):
            yield from (message.strip() for message in cell.split(";"))
        heading = heading or cell


def _literal(node: ast.AST) -> str | None:
    """The text of a literal, also of an f-string or a sum; None: it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) or _VALUE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _literal(node.left), _literal(node.right)
        return None if left is right is None else f"{left or _VALUE}{right or _VALUE}"
    return None


def _without_docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        yield from (n for n in ast.iter_child_nodes(node) if not isinstance(node, ast.Expr))


@cache
def _literals() -> str:
    """Every literal of the package on a line of its own."""
    lines = {
        " ".join(text.replace("`", "").split())
        for path in sorted(_PACKAGE.rglob("*.py"))
        for node in _without_docstrings(ast.parse(path.read_text("utf-8")))
        if (text := _literal(node))
    }
    return "\n".join(lines)


def _pattern(quote: str) -> str:
    """The fixed words in their order, with anything of one message between them."""
    parts = (part.strip() for part in re.split(r"\.\.\.|\bDAY\b", quote.replace("`", "")))
    return ".*".join(re.escape(part) for part in parts if part)


def _is_of_the_code(quote: str) -> bool:
    return re.search(_pattern(quote), _literals()) is not None


def test_the_tables_are_seen() -> None:
    assert len(list(_quotes())) > 100


@pytest.mark.parametrize("quote", sorted({*_quotes()}))
def test_quoted_messages_are_those_of_the_code(quote: str) -> None:
    assert len(re.findall(r"\w{2,}", quote)) > 1, "too few words to find it by"
    assert _is_of_the_code(quote)


@pytest.mark.parametrize(
    ("quote", "expected"),
    [
        ("table ...: its stream is off", True),
        ("its stream is on", False),
        ("is off ... its stream", False),
        ("Messages that the runbook quotes", False),  # a docstring
        ("holds aggregated records, which DynamoDB never writes", True),
    ],
)
def test_only_whole_messages_in_order_count(quote: str, expected: bool) -> None:
    assert _is_of_the_code(quote) is expected
