"""A copy of a Python that runs from any folder, also where no Python is installed.

Of what it needs, only the C library (glibc) stays outside: a machine with the same or a newer one
runs it. A virtual environment would need the very Python that it was made of, at the same path.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_pipeline.core.errors import WorkersError

Glibc = tuple[int, ...]

PROCESSOR = "generic"
"""LLVM's name of the processors for which Numba compiles.

Numba's cache counts only for the kind of processor that it was made for, and those of a cluster
vary. Measured: code for any processor is as fast here as code for the very one.
"""

_MACHINES = ("x86_64", "aarch64")

_FACTS = """
import json, platform, sys, sysconfig
print(json.dumps({
    "program": sys._base_executable,
    "stdlib": sysconfig.get_path("stdlib"),
    "version": "%d.%d" % sys.version_info[:2],
    "system": platform.system(),
    "machine": platform.machine(),
}))
"""

_LAUNCHER = """\
#!/bin/sh
# Starts the Python of this folder, wherever the folder is.
bin=$(dirname "$(readlink -f "$0")")
unset PYTHONHOME NUMBA_CACHE_DIR
export PYTHONNOUSERSITE=1 NUMBA_CPU_NAME={processor} NUMBA_CPU_FEATURES=
export LD_LIBRARY_PATH="$bin/../lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "$bin/{program}" "$@"
"""

# Not for jobs: tests, windows and terminals, and what other programs are built with.
_LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "config-*", "dist-packages", "idlelib", "lib2to3", "site-packages"),
    *("test", "tests", "tkinter", "turtledemo", "EXTERNALLY-MANAGED"),
    *("_tkinter.*", "_curses*.so", "readline.*", "nis.*", "_dbm.*", "_gdbm.*", "_test*.so"),
)
_GLIBC = re.compile(rb"GLIBC_(\d+(?:\.\d+)+)\0")
_OF_GLIBC = re.compile(
    r"(ld-linux|linux-vdso|lib(c|m|dl|rt|util|pthread|resolv|anl|BrokenLocale)\.so)"
)
_LINKED = re.compile(r"^\s*(\S+) => (\S+|not found)", re.MULTILINE)


@dataclass(frozen=True)
class Interpreter:
    """A copied Python. `program`: starts it. `library`: the folder of its modules."""

    program: Path
    library: Path
    version: str
    machine: str


def copy_interpreter(source: Path, target: Path) -> Interpreter:
    """Copy the Python of a program into a new folder, without what is installed for it.

    Raises `WorkersError` for a Python that cannot be copied.
    """
    facts = _facts(source)
    name, stdlib = f"python{facts['version']}", Path(facts["stdlib"])
    if facts["system"] != "Linux" or facts["machine"] not in _MACHINES:
        raise WorkersError(
            f"spark package: {facts['system']} on {facts['machine']} is not what clusters run",
            fix="run the command on Linux, such as in a container",
        )
    if not (stdlib / "ensurepip").is_dir():
        raise WorkersError(
            f"spark package: the Python at {source} has no ensurepip",
            fix="choose another one with --python, such as of `uv python install`",
        )
    (target / "bin").mkdir(parents=True)
    library = target / "lib" / name
    shutil.copytree(stdlib, library, ignore=_LEFT_OUT)
    (library / "site-packages").mkdir()
    real = target / "bin" / name
    shutil.copy2(facts["program"], real)
    for path in _shared_libraries([real, *library.rglob("*.so")]):
        shutil.copy2(path, target / "lib" / path.name)
    launcher = target / "bin" / "python"
    launcher.write_text(_LAUNCHER.format(program=name, processor=PROCESSOR))
    launcher.chmod(0o755)
    (target / "bin" / "python3").symlink_to("python")
    return Interpreter(launcher, library, facts["version"], facts["machine"])


def _facts(source: Path) -> dict[str, Any]:
    try:
        printed = subprocess.run([source, "-c", _FACTS], capture_output=True, check=True).stdout
        return json.loads(printed)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise WorkersError(
            f"spark package: {source} does not start as a Python of 3.11 or newer",
            fix="give --python the path of a Python program",
        ) from error


def _shared_libraries(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the shared libraries that files need, those of glibc left out.

    Raises `WorkersError` if one is missing.
    """
    needed: dict[str, str] = {}
    for file in files:
        done = subprocess.run(["ldd", file], capture_output=True, text=True, check=False)
        needed.update(_LINKED.findall(done.stdout))
    for name, path in sorted(needed.items()):
        if _OF_GLIBC.match(name):
            continue
        if not Path(path).is_absolute():
            raise WorkersError(
                f"spark package: the Python needs {name}, which is not on this machine",
                fix="choose another one with --python, such as of `uv python install`",
            )
        yield Path(path).with_name(name)


def needed_glibc(folder: Path) -> Glibc:
    """Return the version of glibc that the programs and libraries in a folder need at least."""
    binaries = [path for path in folder.rglob("*") if path.is_file() and _is_binary(path)]
    found = (version for path in binaries for version in _GLIBC.findall(path.read_bytes()))
    return max((tuple(map(int, version.split(b"."))) for version in found), default=())


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def this_python() -> Path:
    """Return the program of this Python."""
    return Path(sys.executable)
