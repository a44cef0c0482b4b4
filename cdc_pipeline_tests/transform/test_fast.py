"""The compiled path is the exact path: same rows, same statistics, same errors, whatever comes."""

import base64
import json
import random
import re
import shutil
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

from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.items.columns import Stats, columns_of
from cdc_pipeline.transform import compilation, fast, precompile, shred
from cdc_pipeline.transform.compilation import CELLS, LINES, RECORDS, STATS
from cdc_pipeline.transform.export_lines import LineConverter
from cdc_pipeline.transform.fast.batches import LineReader, Shredder, StatsReader
from cdc_pipeline.transform.shred import NARROW_SCHEMA, arrow_type, collect_stats, typed_schema
from cdc_pipeline_tests.strategies import items, numbers, respelled
from cdc_pipeline_tests.transform.ways import converted_by

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
    converter = LineConverter((KEY,), "data file x")
    try:
        with converted_by("compiled" if compiled else "exact"):
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
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(blob) - 1))
        how = draw(st.integers(0, 2))
        blob[at : at + (how != 1)] = bytes([draw(marks)]) if how else b""
    return bytes(blob).rstrip(b"\n") + b"\n"


@budget(max_examples=1200)
@given(damaged())
def test_damaged_lines_fail_alike_or_not_at_all(blob: bytes) -> None:
    assert_equal(blob)


def _line(text: str) -> bytes:
    return f'{{"Item":{{"pk":{{"S":"k"}},{text}}}}}\n'.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "text",
    [
        '"S":{"S":"S"}',
        '"":{"M":{"":{"M":{}}}}',
        '"a":{"N":"1"},"a":{"N":"2"}',
        '"a":{"M":{"x":{"S":"1"},"x":{"S":"2"}}}',
        '"a":{"S":"x","N":"1"}',
        '"a":{}',
        '"a":{"S":1}',
        '"a":{"N":1}',
        '"a":{"BOOL":"true"}',
        '"a":{"BOOL":tru}',
        '"a":{"NULL":false}',
        '"a":{"SS":[]}',
        '"a":{"SS":["b","a","b"]}',
        '"a":{"SS":["\\u0061","a"]}',
        '"a":{"NS":["10","9","-1","-10","0.5","-0.5","0","9.0","1e1"]}',
        '"a":{"NS":["-2","-1.5","-1","-1.25","1.25","1.5","100","20","0.5","-0.5","0"]}',
        '"a":{"BS":["AAA=","AA==","AAAA","//8=","+w==","zw==",""]}',
        '"a":{"B":"A==="}',
        '"a":{"B":"AB=="}',
        '"a":{"B":"AAB="}',
        '"a":{"B":"=AAA"}',
        '"a":{"B":"AAAAA"}',
        '"a":{"L":[{"L":[]},{"M":{}},{"SS":["x"]}]}',
        '"a":{"N":""}',
        '"a":{"N":"-"}',
        '"a":{"N":"-0"}',
        '"a":{"N":"00"}',
        '"a":{"N":"01"}',
        '"a":{"N":"-01"}',
        '"a":{"N":"1."}',
        '"a":{"N":"1.0"}',
        '"a":{"N":".5"}',
        '"a":{"N":"0.0"}',
        f'"a":{{"N":"{"9" * 38}"}}',
        f'"a":{{"N":"-{"9" * 38}"}}',
        f'"a":{{"N":"{"9" * 39}"}}',
        '"a":{"N":"1E+126"}',
        '"a":{"N":"\uff11"}',
        '"a":{"S":"\\ud800"}',
        '"a":{"S":"\\udc00\\ud800"}',
        '"a":{"S":"\\ud83d\\ude00"}',
        '"a":{"S":"\\ud83dx"}',
        '"a":{"S":"\ud800"}',
        '"a":{"S":"\\u0000\\u001F\\u007f\\u0022\\u005c\\u002f"}',
        '"a":{"S":"\\x"}',
        '"a":{"S":"tab\there"}',
        '"a":{"S":"x"},',
        '"a":{"S":"x"}}',
        '"a":{"S":"x"}},"Other":{"b":{"S":"y"}',
        '"é":{"S":"x"},"z":{"S":"x"},"e":{"S":"x"},"日":{"N":"1"},"𝄞":{"N":"1"},"\uffff":{"N":"1"}',
        '"aaaaaaaab":{"S":"x"},"aaaaaaaaa":{"S":"x"},"aaaaaaaa":{"S":"x"}',
        '"q\\"":{"S":"x"},"q":{"S":"x"},"b\\\\":{"S":"x"}',
        '"a":' + '{"L":[' * 40 + '{"N":"1"}' + "]}" * 40,
        '"a":' + '{"M":{"n":' * 70 + '{"N":"1"}' + "}}" * 70,
    ],
)
def test_lines_that_are_odd(text: str) -> None:
    for blob in (_line(text), _line('"b":{"S":"x"}') + _line(text) + _line('"c":{"N":"7"}')):
        assert_equal(blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b'"Item"\n',
        b'{"Item":null}\n',
        b'{"Item":{}}\n',
        b'{"item":{"pk":{"S":"a"}}}\n',
        b'{"Item":{"pk":{"S":"a"}}}\r\n',
        b' { "Item" : { "pk" : { "S" : "a" } } } \n',
        b'{"Item":{"pk":{"S":"a"}}}{"Item":{"pk":{"S":"b"}}}\n',
        b'{"Item":{"pk":{"S":"a"}}\n}\n',
        b'{"Item":{"pk":{"S":"a"}}}\n\n',
        b'\xef\xbb\xbf{"Item":{"pk":{"S":"a"}}}\n',
        b'{"Item":{"pk":{"S":"\xc0\xaf"}}}\n',
        b'{"Item":{"pk":{"S":"\xed\xa0\x80"}}}\n',
    ],
)
def test_lines_that_are_none(blob: bytes) -> None:
    assert_equal(blob)
    assert_equal(_line('"b":{"S":"x"}') + blob)


def test_many_attributes_and_large_sets() -> None:
    rng = random.Random(1)
    names = ["".join(rng.choices(string.ascii_letters, k=rng.randint(0, 12))) for _ in range(3000)]
    wide = ",".join(f'"{name}":{{"N":"{n}"}}' for n, name in enumerate(dict.fromkeys(names)))
    members = [f'"{rng.randint(-(10**9), 10**9)}"' for _ in range(3000)]
    sets = f'"s":{{"SS":[{",".join(members)}]}},"n":{{"NS":[{",".join(members)}]}}'
    assert_equal(_line(wide) + _line(sets))
    # More names than the compiled path has room for.
    assert_equal(b"".join(_line(f'"name {n}":{{"N":"{n}"}}') for n in range(5000)))


def test_the_compiled_path_is_taken() -> None:
    """What ordinary exports hold is understood; else all of the above would prove nothing."""
    reader = LineReader((KEY,))
    values = [
        '"z":{"N":"-12.5"},"a":{"S":"Grüße \\"x\\" \\u00e9"},"b":{"BOOL":false},"n":{"NULL":true}',
        '"m":{"M":{"y":{"L":[{"N":"1"},{"M":{}}]},"x":{"S":""}}},"ss":{"SS":["b","a"]}',
        '"ns":{"NS":["10","9"]},"bs":{"BS":["AQ==","AA=="]},"bin":{"B":"AAEC"}',
    ]
    spaced = [text.replace(":", " : ").replace(",", " , ") for text in values]
    values += [*spaced, *(text.replace(":", ": ").replace(",", ", ") for text in values)]
    read = reader.read(b"".join(map(_line, values)))
    assert read is not None
    assert read.others == []
    assert [json.loads(text)["pk"] for text in read.items.to_pylist()] == [{"S": "k"}] * 9


# ------------------------------------------------------------------------------------- columns


def _narrow(found: list[dict[str, Any]]) -> pa.RecordBatch:
    texts = [to_json(canonical_item(item)) for item in found]
    count = len(texts)
    columns = [["k"] * count, ["o"] * count, texts, [1] * count]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, NARROW_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=NARROW_SCHEMA)


@budget(max_examples=600)
@given(st.lists(items, min_size=1, max_size=6), st.integers(0, 2))
@example([{"\x00\n": {"S": '\x00\x1f\n"\\/é'}, "M": {"M": {"\n": {"S": "\x0b"}}}}], 0)
def test_columns_and_statistics(found: list[dict[str, Any]], skipped: int) -> None:
    batch = _narrow(found)
    with converted_by("exact"):
        stats = collect_stats([batch])
        columns = columns_of(stats)
        (exact,) = shred.shred([batch], columns)
    with converted_by("compiled"):
        assert collect_stats([batch]) == stats
        (quick,) = shred.shred([batch.slice(skipped)], columns)
    quick.validate(full=True)
    assert quick.equals(exact.slice(skipped))
    # Not by asking the exact path.
    fast_path = Shredder(columns, [arrow_type(column.type) for column in columns])
    assert fast_path.shred(batch.column("item")) is not None
    assert StatsReader().read(batch.column("item"))


@budget(max_examples=300)
@given(st.lists(numbers, min_size=1, max_size=6), st.data())
def test_numbers_of_one_column(found: list[str], data: st.DataObject) -> None:
    texts = [data.draw(respelled(number)) for number in found]
    batch = _narrow([{"n": {"N": text}, "s": {"NS": [text]}} for text in texts])
    columns = columns_of(collect_stats([batch]))
    with converted_by("exact"):
        (exact,) = shred.shred([batch], columns)
    with converted_by("compiled"):
        (quick,) = shred.shred([batch], columns)
    quick.validate(full=True)
    assert quick.equals(exact)


def test_binaries_of_all_lengths() -> None:
    rng = random.Random(2)
    contents = [rng.randbytes(n) for n in range(40)]
    batch = _narrow([{"b": {"B": base64.b64encode(content).decode()}} for content in contents])
    columns = columns_of(collect_stats([batch]))
    found = Shredder(columns, [pa.binary()]).shred(batch.column("item"))
    assert found is not None
    assert found[1][0].to_pylist() == contents


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}x", '{"a"}', '{"a":{"N":"1E+5"}}', '{"a":{"N":"x"}}', '{"a":{"N":"1"}', "[]"],
)
def test_what_is_not_canonical_is_left_to_the_exact_path(text: str) -> None:
    columns = columns_of(collect_stats([_narrow([{"a": {"N": "1"}}])]))
    odd_items = pa.array(['{"a":{"N":"1"}}', text])
    assert Shredder(columns, [pa.int64()]).shred(odd_items) is None


def test_an_attribute_without_column_is_in_the_item_alone_on_both_paths() -> None:
    items = [{"a": {"N": "1"}, "b": {"S": "x"}, "c": {"BOOL": True}}, {"c": {"N": "2"}}, {}]
    batch = _narrow(items)
    columns = [c for c in columns_of(collect_stats([batch])) if c.attribute in "ac"]
    shown = []
    for way in ("compiled", "exact"):
        with converted_by(way):
            typed = pa.Table.from_batches(shred.shred([batch], columns), typed_schema(columns))
        shown.append(typed.to_pylist())
    assert shown[0] == shown[1]
    assert [row["a"] for row in shown[0]] == [1, None, None]
    (kept,) = {row["_rescued"] for row in shown[0]} - {None}
    assert kept in ('{"c":{"N":"2"}}', '{"c":{"BOOL":true}}')
    assert [row["_item"] for row in shown[0]] == batch.column("item").to_pylist()


def test_without_numba_all_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = _line('"z":{"N":"1.50"},"a":{"S":"x"}') * 3
    with_it = convert(blob, compiled=True)
    monkeypatch.setattr(fast, "_batches", lambda: None)
    assert convert(blob, compiled=True) == with_it
    batch = _narrow([{"a": {"N": "1"}}])
    with converted_by("compiled"):
        columns = columns_of(collect_stats([batch]))
        typed = pa.Table.from_batches(shred.shred([batch], columns), typed_schema(columns))
    assert typed.column("a").to_pylist() == [1]


def test_precompiling_leaves_nothing_to_compile() -> None:
    assert precompile.precompile()
    assert all(map(compilation.is_cached.__wrapped__, (LINES, STATS, CELLS, RECORDS)))
    columns = columns_of(collect_stats([_narrow([precompile._ITEM])]))
    kinds = {re.sub(r"\(.*?\)", "", column.type) for column in columns}
    scalars = {"int64", "decimal", "string", "binary"}
    assert kinds == scalars | {"boolean", "json"} | {f"list<{kind}>" for kind in scalars}


def test_numba_that_is_not_installed_is_no_error() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from cdc_pipeline.transform import fast\n"
        "assert fast.line_reader(('pk',)) is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_compiled_code_is_kept_where_it_can_be(tmp_path: Path) -> None:
    """A read-only installation without a folder of the user's own compiles, and works."""
    code = (
        "from cdc_pipeline.transform.fast import columns\n"
        "import numba.core.caching as c\n"
        "print(type(columns.integers._cache).__name__)\n"
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


@pytest.mark.slow
def test_compiled_code_is_not_kept_when_what_it_calls_changes(tmp_path: Path) -> None:
    """Numba itself would look at the file of `integers` alone."""
    package = tmp_path / "cdc_pipeline"
    shutil.copytree(ROOT / "cdc_pipeline", package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numpy as np\n"
        "from cdc_pipeline.transform.fast import columns\n"
        "text, at, values = np.frombuffer(b'12      ', np.uint8), np.array([0, 2]), np.zeros(1)\n"
        "print(columns.integers(text, at[:1], at[1:], values.astype(np.int64)))\n"
    )

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    assert run() == "True"
    numbers_file = package / "transform" / "fast" / "numbers.py"
    source = numbers_file.read_text()
    assert "return ZERO <= c <= _NINE" in source
    numbers_file.write_text(source.replace("return ZERO <= c <= _NINE", "return c < 0"))
    assert run() == "False"


ROOT = Path(__file__).resolve().parents[2]
