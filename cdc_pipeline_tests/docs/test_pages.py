"""README and docs/ as pages: links and anchors resolve; each page has its place in the index."""

import re
from pathlib import Path

import pytest

from cdc_pipeline_tests.docs.pages import PAGES, ROOT, anchors, blocks, links, prose

_INDEX = ROOT / "docs" / "index.md"
_LANGUAGES = {"sh", "yaml", "python", "sql", "text", "json"}
_README_LINES = 150
_WIDTH = 120
_NOT_OUR_WORDS = r"\b(roads?|said|told|knows)\b"
_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def _broken(page: Path) -> list[str]:
    broken: list[str] = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, part = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_known = target.is_file() and target.is_relative_to(ROOT)
        if not is_known or (part and part not in anchors(target)):
            broken.append(link)
    return broken


@_by_page
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    assert _broken(page) == []


def test_broken_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline_tests.docs.test_pages.ROOT", tmp_path)
    page = tmp_path / "page"
    page.write_text("# A page\n[a](none) [b](#a-page) [c](#none) [d](https://x.example/none)\n")
    assert _broken(page) == ["none", "#none"]


def test_every_page_is_in_the_index_once() -> None:
    listed = [(_INDEX.parent / link.partition("#")[0]).resolve() for link in links(_INDEX)]
    pages = [page for page in PAGES if page not in (_INDEX, ROOT / "README.md")]
    assert sorted(listed) == sorted(pages)


def test_the_readme_is_short_and_has_the_test_command() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= _README_LINES
    assert any(line.startswith("make test ") for line in lines)


@_by_page
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    wide = [line for line in lines if len(line) > _WIDTH]
    assert [line for line in wide if not line.lstrip().startswith(("|", "!["))] == []


@_by_page
def test_words(page: Path) -> None:
    assert re.findall(_NOT_OUR_WORDS, prose(page), re.IGNORECASE) == []


@_by_page
def test_code_blocks_name_their_language(page: Path) -> None:
    assert [b.where for b in blocks(page) if b.language not in _LANGUAGES] == []
