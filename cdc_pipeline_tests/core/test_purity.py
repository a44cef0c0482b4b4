"""The arrows between rooms, and a core that needs nothing but the standard library."""

import ast
import json
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import cdc_pipeline
import cdc_pipeline.core
from cdc_pipeline import lake
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import load_settings

_PACKAGE = Path(cdc_pipeline.__file__).parent
_HEAVY = ["dagster", "boto3", "botocore", "pyarrow", "duckdb", "msgspec", "pydantic", "yaml"]

# From the ground up. A module imports from its own room and from rooms of the lines before its own;
# rooms of one line know nothing of each other. Modules that stand alone are rooms of their own.
_ROOMS = (
    ("core",),
    ("core.items", "core.log"),
    ("core.changes",),
    ("core.plans",),
    ("settings", "transform.fast", "transform.sql", "aws.client"),
    ("transform.fast.stream",),
    ("transform", "aws.s3"),
    ("aws",),
    ("lake.storage",),
    ("lake.iceberg",),
    ("lake.lake",),
    ("lake.engine", "lake.glue_partitions"),
    ("lake.state",),
    ("lake.publish",),
    ("lake.upkeep", "lake.query"),
    ("lake",),
    ("spark",),
    ("capture.sources",),
    ("capture.landing",),
    ("capture.shards", "capture.firehose"),
    ("capture",),
    ("snapshot",),
    ("repair", "reconcile", "erase", "service", "setup.checks"),
    ("setup", "spark.job"),
    ("defs",),
    ("defs.tables",),
    ("defs.operations",),
    ("defs.repository",),
    ("defs.build",),
    ("definitions",),
    ("sandbox",),
    ("sandbox.aws.dynamodb",),
    ("sandbox.aws.exports",),
    ("sandbox.aws.firehose", "sandbox.aws.emr"),
    ("sandbox.aws",),
    ("sandbox.__main__", "sandbox.demo"),
    # Above the demo: the commands `sandbox`, `demo` and `dev` start it.
    ("commands",),
    ("cli",),
)
# What may see less than all that lies below: settings know no AWS, the emulator nothing of us. A
# command calls one use case, so neither adapters of AWS nor capture by itself.
_SEES_ONLY = {
    "settings": ("core",),
    "transform": ("core", "transform"),
    "aws": ("core", "aws"),
    "commands": (
        "core",
        "settings",
        "lake",
        "repair",
        "reconcile",
        "erase",
        "service",
        "setup",
        "spark",
        "defs",
        "sandbox.demo",
        "commands",
    ),
    "cli": ("core", "commands"),
    "sandbox.aws": ("sandbox",),
}
_FULL_ROOM = 12
_HEIGHT = {room: height for height, rooms in enumerate(_ROOMS) for room in rooms}


def _room(module: str) -> str:
    """`cdc_pipeline.aws.s3.reads` is in the room `aws.s3`; the package itself in none."""
    name = module.removeprefix("cdc_pipeline").removeprefix(".")
    while name not in _HEIGHT and name:
        name = name.rpartition(".")[0]
    return name


def _is_in(room: str, whole: str) -> bool:
    return room == whole or room.startswith(f"{whole}.")


def _imported(tree: ast.AST, package: str) -> set[str]:
    """Modules of ours that a module names in imports, those inside functions included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from cdc_pipeline.lake import x`: of the room of `x` if that is a module.
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "cdc_pipeline"}


def _arrows_of(path: Path) -> set[tuple[str, str]]:
    relative = path.relative_to(_PACKAGE.parent).with_suffix("")
    module = ".".join(relative.parts).removesuffix(".__init__")
    package = ".".join(relative.parts[:-1])
    names = _imported(ast.parse(path.read_text("utf-8")), package)
    return {(_room(module), _room(name)) for name in names}


@pytest.mark.parametrize(
    "path",
    sorted(_PACKAGE.rglob("*.py")),
    ids=lambda path: path.relative_to(_PACKAGE).as_posix(),
)
def test_imports_follow_the_arrows(path: Path) -> None:
    for source, target in _arrows_of(path):
        if target in (source, ""):
            continue
        assert source, f"{path.name} is in no room: give it one here and in docs/architecture.md"
        assert _HEIGHT[target] < _HEIGHT[source], f"{source} must not import {target}"
        for whole, seen in _SEES_ONLY.items():
            if _is_in(source, whole):
                assert any(_is_in(target, s) for s in seen), f"{whole} must not know {target}"


def test_only_the_extra_fast_brings_numpy() -> None:
    """So nothing else may need it; modules that do are loaded by those that found Numba."""
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['numba'] = None; "
        "import cdc_pipeline.defs.build, cdc_pipeline.cli"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_room_is_too_full() -> None:
    rooms = Counter(
        path.parent.relative_to(_PACKAGE).as_posix()
        for path in _PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    )
    assert {room: n for room, n in rooms.items() if n > _FULL_ROOM} == {}
    assert {r.replace("/", ".") for r in rooms} - {"."} <= _HEIGHT.keys()


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import cdc_pipeline.lake.storage.log", "cdc_pipeline.lake.storage.log"),
        ("from cdc_pipeline import lake", "cdc_pipeline.lake"),
        (
            "def f():\n    from cdc_pipeline.sandbox.demo.serve import x",
            "cdc_pipeline.sandbox.demo.serve.x",
        ),
        ("from ..lake import log", "cdc_pipeline.lake.log"),
        ("from . import errors", "cdc_pipeline.core.errors"),
    ],
)
def test_every_way_to_import_is_seen(statement: str, found: str) -> None:
    assert found in _imported(ast.parse(statement), "cdc_pipeline.core")


def _loaded_after(modules: list[str]) -> list[str]:
    code = (
        "import sys, json, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(json.dumps([n for n in {_HEAVY!r} if n in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=_PACKAGE.parent,
    )
    return json.loads(done.stdout)


def test_core_needs_only_the_standard_library() -> None:
    core = cdc_pipeline.core
    modules = [m.name for m in pkgutil.walk_packages(core.__path__, f"{core.__name__}.")]
    assert "cdc_pipeline.core.changes.fold" in modules
    assert _loaded_after([core.__name__, *modules]) == []


def test_the_public_names_are_those_of_their_homes() -> None:
    assert cdc_pipeline.connect is lake.connect
    assert cdc_pipeline.Lake is Lake
    assert cdc_pipeline.load_settings is load_settings
    assert cdc_pipeline.CdcPipelineError is CdcPipelineError
    with pytest.raises(AttributeError, match="conect"):
        _ = cdc_pipeline.conect


def test_importing_the_package_and_the_lake_loads_nothing_heavy() -> None:
    assert _loaded_after(["cdc_pipeline", "cdc_pipeline.lake"]) == []


def test_the_command_line_starts_without_anything_heavy() -> None:
    assert _loaded_after(["cdc_pipeline.cli"]) == []


_ON_SETTINGS = """
import json, sys
from cdc_pipeline.cli import main
for command in (["settings-schema"], ["tables", "list"], ["tables", "add", "new", "--no-check"]):
    main(command, standalone_mode=False)
print("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_commands_on_settings_load_nothing_of_the_lake(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("lake: lake\ntables:\n  - name: orders\n")
    done = subprocess.run(
        [sys.executable, "-c", _ON_SETTINGS],
        env={**os.environ, "CDC_PIPELINE_CONFIG": str(settings)},
        capture_output=True,
        text=True,
        check=True,
        cwd=_PACKAGE.parent,
    )
    assert "- name: new" in settings.read_text()
    loaded = {*json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"dagster", "boto3", "pyiceberg", "pyarrow", "duckdb", "numpy", "sqlglot"}
