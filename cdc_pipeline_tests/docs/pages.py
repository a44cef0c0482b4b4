"""README and the pages of docs/ as tests read them: text, anchors, links, code blocks, commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
OURS = "cdc-pipeline"

_FENCE = re.compile(r"^( *)```(\w*)$")
_REASON = re.compile(r"^ *<!-- not run: (.+) -->$")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block. `line`: of its fence, from 1. `reason`: why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def where(self) -> str:
        """Page and line, for messages and test names."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a shell block. `target`, `source`: files of `>` and `<`."""

    block: Block
    words: tuple[str, ...]
    target: str | None
    source: str | None

    @property
    def program(self) -> str:
        """The name of the program, without its folder."""
        return self.words[0].rpartition("/")[2]


def prose(page: Path) -> str:
    """The text of a page without its code blocks and code spans."""
    lines: list[str] = []
    inside = False
    for line in page.read_text("utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            lines.append(re.sub(r"`[^`]*`", "``", line))
    return "\n".join(lines)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in _HEADING.findall(text)}


def anchor(heading: str) -> str:
    """The anchor of one heading: lower case, no punctuation, dashes for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page: Path) -> list[str]:
    """The targets of a page's links and images."""
    return _LINK.findall(prose(page))


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order; their indentation is taken off."""
    lines = page.read_text("utf-8").splitlines()
    found: list[Block] = []
    start: re.Match[str] | None = None
    at = 0
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match is None:
            continue
        if start is None:
            start, at = match, number
            continue
        body = [row.removeprefix(start[1]) for row in lines[at + 1 : number]]
        reason = _REASON.match(lines[at - 1]) if at else None
        why = reason[1] if reason else None
        found.append(Block(page, at + 1, start[2], "\n".join(body) + "\n", why))
        start = None
    assert start is None, f"{page}: a code block has no end"
    return found


def every_block(*languages: str) -> list[Block]:
    """The code blocks of all pages in these languages."""
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def commands(block: Block) -> list[Command]:
    """The commands of a shell block; those joined by `&&` or `|` are several."""
    lexer = shlex.shlex(
        re.sub(r"\$\(\s*(.+?)\)", r"SUBSTITUTED", block.text.replace("\\\n", " "), flags=re.DOTALL),
        posix=True,
        punctuation_chars="&|<>;\n",
    )
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[Command] = []
    words: list[str] = []
    files: dict[str, str] = {}
    tokens = _without_comments(list(lexer))
    while tokens:
        token = tokens.pop(0)
        if token in (">", "<"):
            files[token] = tokens.pop(0)
        elif not token.strip() or token[0] in "&|;\n":
            _add(found, block, words, files)
            words, files = [], {}
        else:
            words.append(token)
    _add(found, block, words, files)
    return found


def _without_comments(tokens: list[str]) -> list[str]:
    kept: list[str] = []
    comment = False
    for token in tokens:
        if token.startswith("\n"):
            comment = False
        comment = comment or token.startswith("#")
        if not comment:
            kept.append(token)
    return kept


def _add(found: list[Command], block: Block, words: list[str], files: dict[str, str]) -> None:
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    if words:
        found.append(Command(block, tuple(words), files.get(">"), files.get("<")))


def every_command(program: str) -> list[Command]:
    """The commands of one program in all pages."""
    return [
        command
        for block in every_block("sh")
        for command in commands(block)
        if command.program == program
    ]
