"""The arrows of DESIGN section 5, and a core that needs nothing but the standard library."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cdc_pipeline
import cdc_pipeline.core

_PACKAGE = Path(cdc_pipeline.__file__).parent
_HEAVY = ["dagster", "boto3", "botocore", "pyarrow", "duckdb", "msgspec", "pydantic", "yaml"]

# Part of the package -> parts it may import, itself left out. `settings`, `settings_file`,
# `cli` and `definitions` are single modules.
_ARROWS: dict[str, set[str]] = {
    "core": set(),
    "settings": {"core"},
    "aws": {"core"},
    "transform": {"core"},
    "lake": {"aws", "transform", "core", "settings"},
    "settings_file": {"core", "settings"},
    "capture": {"lake", "transform", "aws", "core", "settings", "settings_file"},
    "defs": {"capture", "lake", "transform", "aws", "core", "settings"},
    "definitions": {"defs", "capture", "lake", "transform", "aws", "core", "settings"},
    "commands": {"capture", "lake", "aws", "core", "settings"},
    "cli": {
        *("commands", "sandbox", "defs", "capture", "lake", "transform", "aws", "core"),
        "settings",
    },
    "sandbox": {"cli", "defs", "capture", "lake", "transform", "aws", "core", "settings"},
    "cdc_pipeline": set(),
}


def _part(module: str) -> str:
    """`cdc_pipeline.lake.log` is in the part `lake`; the package itself is `cdc_pipeline`."""
    return ([*module.split("."), "cdc_pipeline"])[1]


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
            found.add(base)
            if base == "cdc_pipeline":
                found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "cdc_pipeline"}


def _arrows_of(path: Path) -> set[tuple[str, str]]:
    relative = path.relative_to(_PACKAGE.parent).with_suffix("")
    module = ".".join(relative.parts).removesuffix(".__init__")
    package = ".".join(relative.parts[:-1])
    names = _imported(ast.parse(path.read_text("utf-8")), package)
    # `cdc_pipeline` alone says nothing: `from cdc_pipeline import lake` is in as `.lake` too.
    return {(_part(module), _part(name)) for name in names if name != "cdc_pipeline"}


@pytest.mark.parametrize(
    "path",
    sorted(_PACKAGE.rglob("*.py")),
    ids=lambda path: path.relative_to(_PACKAGE).as_posix(),
)
def test_imports_follow_the_arrows(path: Path) -> None:
    for source, target in _arrows_of(path):
        assert source in _ARROWS, f"{source} is new: give it its arrows here and in DESIGN"
        assert target == source or target in _ARROWS[source], f"{source} must not import {target}"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import cdc_pipeline.lake.log", "cdc_pipeline.lake.log"),
        ("from cdc_pipeline import lake", "cdc_pipeline.lake"),
        ("def f():\n    from cdc_pipeline.sandbox.run import x", "cdc_pipeline.sandbox.run"),
        ("from ..lake import log", "cdc_pipeline.lake"),
        ("from . import errors", "cdc_pipeline.core"),
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
    assert "cdc_pipeline.core.fold" in modules
    assert _loaded_after([core.__name__, *modules]) == []


def test_importing_the_package_and_the_lake_loads_nothing_heavy() -> None:
    assert _loaded_after(["cdc_pipeline", "cdc_pipeline.lake"]) == []
