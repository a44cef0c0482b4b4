"""docs/architecture.md and docs/aws_facts.md against the repository: what they name exists."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import cdc_pipeline
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.log import entries
from cdc_pipeline.core.log.heartbeat import Heartbeat
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.settings.model import Settings
from cdc_pipeline_tests.core.test_purity import _ROOMS

_PACKAGE = Path(cdc_pipeline.__file__).parent
_ROOT = _PACKAGE.parent
_TESTS = _ROOT / "cdc_pipeline_tests"
_PAGE, _FACTS = _ROOT / "docs" / "architecture.md", _ROOT / "docs" / "aws_facts.md"

_AROUND = ("aggregates", "benchmarks", "docs", "findings", "infra")
_FOLDERS = (".ci", "cdc_pipeline", "cdc_pipeline_tests", *_AROUND)
_TEXTS = {"", ".java", ".md", ".py", ".sh", ".sql", ".toml", ".yaml", ".yml"}
_NOT_OURS = {"__pycache__", "node_modules"}

_OTHER_NAMES = {"constraints.txt", "dynamodb.amazonaws.com"}
_PROPERTY = "cdc_pipeline."  # what names of table properties begin with

_DOTTED = re.compile(r"[a-z_]+(\.[A-Za-z_]\w*)+").fullmatch
_FILE = re.compile(r"[\w./-]+\.(?:json|md|py|sql|xz|yaml)|[\w./-]+/").fullmatch
# The last name of a page in front of its suffix; addresses in the web are no files.
_MENTION = re.compile(r"(?<![\w:/.-])((?:[\w-]+/|\.\./)*[\w-]+\.md)\b")
_HEADING_OF_FACTS = re.compile(r"docs/aws_facts\.md, ([A-Za-z ]+)")
_OUTSIDE = re.compile(
    r"\b(?:DESIGN|DYNAMODB_CDC|AWS_2026|PEERS|PARTS|PUBLISHING|PERFORMANCE|EMULATORS)(?:\.md| sec)"
    r"|\b[A-Z][A-Z0-9_]{3,},? sections? [0-9]"
    r"|\b(?:DYNAMODB_CDC|AWS_2026)\b|\b(?:in|of|see) DESIGN\b"
)


def _text(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def _quoted(text: str) -> list[str]:
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def _section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = page.read_text("utf-8").partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


# The map


def _rooms() -> Iterator[str]:
    for path in sorted(_PACKAGE.rglob("__init__.py")):
        yield f"{path.parent.relative_to(_ROOT).as_posix()}/"
    yield from (f"{name}/" for name in _AROUND)
    yield f"{_TESTS.name}/"
    for folder in sorted(_TESTS.iterdir()):
        if folder.is_dir() and any(folder.rglob("*.py")):
            yield f"{_TESTS.name}/{folder.name}/"


def test_every_room_has_one_line_in_the_map() -> None:
    lines = re.findall(r"^\| `([\w/]+/)` \|", _section(_PAGE, "## The map"), re.MULTILINE)
    assert sorted(lines) == sorted(_rooms())


def test_folders_within_folders_of_tests_are_rooms_of_the_package() -> None:
    folders = {path.parent.relative_to(_TESTS) for path in _TESTS.glob("*/**/*.py")}
    strangers = {f for f in folders if len(f.parts) > 1 and not (_PACKAGE / f).is_dir()}
    assert strangers == set()


def test_the_picture_of_the_arrows_is_that_of_the_purity_test() -> None:
    _, _, rest = _section(_PAGE, "## The map").partition("**The arrows.**")
    block = rest.split("```")[1].removeprefix("text")
    # Behind the names of rooms, and some distance, there may be a remark.
    lines = [tuple(re.split(r" {6,}", line.strip())[0].split()) for line in block.splitlines()]
    assert [line for line in lines if line] == [*reversed(_ROOMS)]


# Names


@cache
def _names(path: Path) -> dict[str, ast.stmt]:
    """What a module defines, and what its classes do: `name` and `Class.name`."""
    found: dict[str, ast.stmt] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[prefix + node.target.id] = node
            elif isinstance(node, ast.Assign):
                found.update((prefix + t.id, node) for t in node.targets if isinstance(t, ast.Name))
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")

    add(ast.parse(path.read_text("utf-8")).body, "")
    return found


def _module(parts: list[str]) -> Path | None:
    path = _PACKAGE.joinpath(*parts)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _exists(dotted: str) -> bool:
    """Whether it is a module of the package, or something that one defines."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if (path := _module(parts[:end])) is not None:
            return end == len(parts) or ".".join(parts[end:]) in _names(path)
    return False


@pytest.mark.parametrize("page", [_PAGE, _FACTS], ids=lambda page: page.name)
def test_modules_and_functions_that_a_page_names_exist(page: Path) -> None:
    dotted = [name for name in _quoted(_text(page)) if _DOTTED(name)]
    ours = [name for name in dotted if name not in _OTHER_NAMES and not name.startswith(_PROPERTY)]
    assert len(ours) > 20
    assert [name for name in ours if not _exists(name)] == []


@pytest.mark.parametrize("page", [_PAGE, _FACTS], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """From the root, or from the package or its tests; keys of a lake begin with its folders."""
    folders = {path.name for base in (_ROOT, _PACKAGE, _TESTS) for path in base.iterdir()}
    named = [
        n for n in _quoted(_text(page)) if "/" in n and _FILE(n) and n.split("/")[0] in folders
    ]
    assert len(named) > 2
    bases = (_ROOT, _PACKAGE, _TESTS)
    assert [name for name in named if not any((b / name).exists() for b in bases)] == []


def test_every_invariant_names_its_tests() -> None:
    bullets = re.split(r"^- ", _section(_PAGE, "## Invariants"), flags=re.MULTILINE)[1:]
    assert len(bullets) > 20
    for bullet in bullets:
        tests = [name for name in _quoted(bullet) if name.endswith(".py")]
        assert tests, f"no test holds: {bullet}"
        assert [name for name in tests if not (_TESTS / name).is_file()] == []


# Stored formats

_PARTS = [
    kind
    for kind in vars(entries).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]


def _fields(kind: type) -> set[str]:
    """Those that are stored."""
    return {field.name for field in dataclasses.fields(kind) if field.compare}


def test_every_field_of_an_entry_and_of_a_summary_is_described() -> None:
    entry, _, summary = _section(_PAGE, "### Capture log").partition("\nA summary has ")
    assert summary
    assert _fields(Entry) - {*_quoted(entry)} == set()
    assert _fields(LogState) - {*_quoted(summary)} == set()
    assert _fields(Heartbeat) - {*_quoted(entry.partition("\nThe heartbeat ")[2])} == set()


@pytest.mark.parametrize("kind", _PARTS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_part_of_an_entry_is_described(kind: type) -> None:
    section = _section(_PAGE, "### Capture log")
    found = re.search(rf"^- `{kind.__name__}`:(.*?)\n(?=- |\n)", section, re.DOTALL | re.MULTILINE)
    assert found, f"{kind.__name__} is not described"
    assert {*_quoted(found[1])} == _fields(kind)


def test_causes_of_gaps_are_listed() -> None:
    assert {*get_args(entries.Cause)} - {*_quoted(_section(_PAGE, "### Capture log"))} == set()


def test_landing_columns_are_in_their_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", _section(_PAGE, "### Landing columns"), re.M)
    assert rows == [(column.name, column.type) for column in LANDING_COLUMNS]


def test_keys_of_the_settings_are_listed() -> None:
    _, _, keys = _section(_PAGE, "### Settings file").partition("Top-level keys:")
    assert _quoted(keys) == [*Settings.model_fields]


# References


def _files() -> Iterator[Path]:
    yield from (path for path in _ROOT.iterdir() if path.is_file() and path.suffix in _TEXTS)
    for folder in _FOLDERS:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in _TEXTS and not _NOT_OURS & {*path.parts}:
                yield path


def _lines() -> Iterator[tuple[Path, str, str]]:
    """Every line of our texts, with the file and where it is; this file has patterns instead."""
    for path in _files():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            yield path, f"{path.relative_to(_ROOT)}:{number}", line


def test_nothing_refers_to_documents_outside_of_the_repository() -> None:
    assert [f"{at}: {line.strip()}" for _, at, line in _lines() if _OUTSIDE.search(line)] == []


def test_pages_that_are_named_anywhere_exist() -> None:
    missing = [
        f"{at}: {name}"
        for path, at, line in _lines()
        for name in _MENTION.findall(line)
        if not any((base / name).is_file() for base in (_ROOT, path.parent, _ROOT / "docs"))
    ]
    assert missing == []


def test_references_to_the_facts_name_a_heading() -> None:
    headings = re.findall(r"^## (.+)$", _FACTS.read_text("utf-8"), re.MULTILINE)
    known = {part.lower() for heading in headings for part in [heading, *heading.split(" and ")]}
    named = [(at, m[1]) for _, at, line in _lines() for m in _HEADING_OF_FACTS.finditer(line)]
    assert len(named) > 10
    assert [(at, name) for at, name in named if name.strip().lower() not in known] == []


@pytest.mark.parametrize("page", [_PAGE, _FACTS], ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.is_file(), target
        headings = re.findall(r"^#+ (.+)$", other.read_text("utf-8"), re.MULTILINE)
        assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see docs/aws.md and [types](../types.md#numbers)", ["docs/aws.md", "../types.md"]),
        ("https://example.org/pages/README.md", []),
    ],
)
def test_every_mention_of_a_page_is_seen(line: str, found: list[str]) -> None:
    assert _MENTION.findall(line) == found
