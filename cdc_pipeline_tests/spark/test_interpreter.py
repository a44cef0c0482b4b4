"""Copies of a Python: where they cannot be made, and which glibc they need."""

import shutil
import sys
from pathlib import Path

import pytest

from cdc_pipeline.core.errors import WorkersError
from cdc_pipeline.spark import interpreter
from cdc_pipeline.spark.interpreter import copy_interpreter, needed_glibc, this_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="clusters run Linux")


@pytest.mark.parametrize("program", ["/bin/true", "/bin/sh", "/no/such/python"])
def test_what_is_no_python_is_refused(program: str, tmp_path: Path) -> None:
    with pytest.raises(WorkersError, match=f"{program} does not start as a Python"):
        copy_interpreter(Path(program), tmp_path / "environment")


def test_other_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = interpreter._facts(this_python())
    monkeypatch.setattr(interpreter, "_facts", lambda _: {**facts, "system": "Darwin"})
    with pytest.raises(WorkersError, match=r"Darwin on \w+ is not what clusters run"):
        copy_interpreter(this_python(), tmp_path / "environment")


def test_glibc_is_the_newest_that_any_file_needs(tmp_path: Path) -> None:
    assert needed_glibc(tmp_path) == ()
    (tmp_path / "text").write_bytes(b"GLIBC_9.99\0")
    (tmp_path / "old.so").write_bytes(b"\x7fELF GLIBC_2.9\0 GLIBC_2.17\0 GLIBC_PRIVATE\0")
    assert needed_glibc(tmp_path) == (2, 17)
    shutil.copy(Path(sys.executable).resolve(), tmp_path / "python")
    assert needed_glibc(tmp_path) >= (2, 17)
