"""The compiled path is the exact path: same rows, same statistics, same errors, whatever comes."""

import base64
import json
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

pytest.importorskip("numba")

from cdc_pipeline.core.attributes import canonical_item, to_json
from cdc_pipeline.core.columns import Stats, columns_of
from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.transform import fast, shred
from cdc_pipeline.transform.convert import LineConverter
from cdc_pipeline.transform.fast.batches import LineReader, Shredder
from cdc_pipeline.transform.shred import NARROW_SCHEMA, arrow_type, collect_stats, typed_schema
from cdc_pipeline_tests.strategies import items, numbers, respelled

KEY = "pk"
BLANKS = ["", "", "", " ", "\t", "\r", " \t "]


class Speller:
    """JSON of the same value in another spelling, by chance."""

    def __init__(self, rng: random.Random, hostility: float) -> None:
        self._rng = rng
        self._hostility = hostility

    def chance(self) -> bool:
        return self._rng.random() < self._hostility

    def blank(self) -> str:
        return self._rng.choice(BLANKS) if self.chance() else ""

    def text(self, value: str) -> str:
        return '"' + "".join(map(self._character, value)) + '"'

    def _character(self, c: str) -> str:
        short = {"\n": r"\n", "\t": r"\t", '"': r"\"", "\\": r"\\", "\b": r"\b", "\f": r"\f"}
        if c in short and not self.chance():
            return short[c]
        if c == "/" and self.chance():
            return r"\/"
        if ord(c) < 0x20 or c in '"\\' or self.chance():
            units = c.encode("utf-16-be")
            codes = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
            return "".join(f"\\u{code.upper() if self.chance() else code}" for code in codes)
        return c

    def value(self, value: Any) -> str:
        if isinstance(value, dict):
            members = list(value.items())
            self._rng.shuffle(members)
            if members and self.chance() and self.chance():
                members.append(members[0])
            return self._joined("{}", [self._member(*m) for m in members])
        if isinstance(value, list):
            return self._joined("[]", [self.value(v) for v in value])
        return self.text(value) if isinstance(value, str) else json.dumps(value)

    def _member(self, name: str, value: Any) -> str:
        return f"{self.text(name)}{self.blank()}:{self.blank()}{self.value(value)}"

    def _joined(self, around: str, parts: list[str]) -> str:
        inner = f"{self.blank()},{self.blank()}".join(parts)
        return f"{around[0]}{self.blank()}{inner}{self.blank()}{around[1]}"


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """One line of an export, spelled by chance; most have their key."""
    item = draw(items)
    if draw(st.integers(0, 9)):
        item = {**item, KEY: {"S": draw(st.text(max_size=3))}}
    rng = draw(st.randoms(use_true_random=False))
    spell = Speller(rng, draw(st.sampled_from([0.0, 0.0, 0.05, 0.5])))
    line = f"{spell.blank()}{spell.value({'Item': item})}{spell.blank()}"
    return line.encode("utf-8", "surrogatepass") + b"\n"


def convert(blob: bytes, *, compiled: bool) -> tuple[Any, Stats] | str:
    """Rows and statistics, or the error."""
    converter = LineConverter((KEY,), "data file x", fast=compiled)
    try:
        rows = converter.convert(blob)
    except ExportError as error:
        return error.message
    for array in rows:
        array.validate(full=True)
    return (rows.keys.to_pylist(), rows.items.to_pylist()), converter.stats()


def assert_equal(blob: bytes) -> None:
    assert convert(blob, compiled=True) == convert(blob, compiled=False)


@budget(max_examples=600)
@given(st.lists(lines(), max_size=5).map(b"".join))
def test_lines_in_any_spelling(blob: bytes) -> None:
    assert_equal(blob)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Lines with some bytes replaced, inserted or removed."""
    blob = bytearray(b"".join(draw(st.lists(lines(), min_size=1, max_size=3))))
    odd = b'{}[]",:\\/utrfalse0-.E+ \n\x00\x1f\x7f\x80\xc3\xed\xff'
    marks = st.sampled_from(odd) | st.integers(0, 255)
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_compiled_code_is_kept_where_it_can_be(tmp_path: Path) -> None:
    """A read-only installation without a folder of the user's own compiles, and works."""
    code = (
        "from cdc_pipeline.transform.fast import kernels\n"
        "import numba.core.caching as c\n"
        "print(type(kernels.integers._cache).__name__)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    kept = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert kept.stdout.strip() == "FunctionCache"
    refuse = ("import numba.core.caching as c\nc.CacheImpl._locator_classes = []\n") + code
    without = subprocess.run(
        [sys.executable, "-c", refuse], env=environment, capture_output=True, text=True
    )
    assert without.stdout.strip() == "NullCache", without.stderr


ROOT = Path(__file__).resolve().parents[2]
