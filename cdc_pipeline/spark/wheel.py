"""A wheel of the code that runs here, which requires only what a Spark job needs.

The wheel of the distribution would bring Dagster to the executors. The versions are pinned to those
of this Python, so that a run and its job read and write the same.
"""

import base64
import hashlib
import zipfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import cdc_pipeline
from cdc_pipeline.core.errors import SettingsError

NEEDED = (
    "boto3",
    "croniter",
    "dagster-pipes",
    "duckdb",
    "fsspec",
    "isal",
    "msgspec",
    "numba",
    "numpy",
    "pyarrow",
    "pydantic",
    "pyiceberg",
    "PyYAML",
    "sqlglot",
)
"""Distributions that a job imports; a test compares."""

_SUFFIXES = {".py", ".sql", ".typed", ".yaml"}
_MADE = (1980, 1, 1, 0, 0, 0)
"""Time of each file in the wheel: the same code gives the same wheel."""


def write_wheel(folder: Path) -> Path:
    """Write the wheel into a folder; return its path.

    Raises `SettingsError` if something that a job needs is not installed here.
    """
    number, root = _version("cdc-pipeline"), Path(cdc_pipeline.__file__).parent
    about = f"cdc_pipeline-{number}.dist-info"
    sources = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES)
    files = {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in sources}
    files[f"{about}/METADATA"] = _metadata(number).encode()
    files[f"{about}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: cdc_pipeline\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = f"{about}/RECORD"
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items()]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    wheel = folder / f"cdc_pipeline-{number}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _MADE), data, zipfile.ZIP_DEFLATED)
    return wheel


def constraints() -> list[str]:
    """Return the versions of all that is installed here, as pip takes constraints."""
    found = {each.metadata["Name"]: each.version for each in distributions()}
    return [f"{name}=={number}" for name, number in sorted(found.items()) if not _is_own(name)]


def _is_own(name: str) -> bool:
    return name.replace("_", "-") == "cdc-pipeline"


def _metadata(number: str) -> str:
    lines = ["Metadata-Version: 2.1", "Name: cdc-pipeline", f"Version: {number}"]
    lines += ["Requires-Python: >=3.11"]
    lines += [f"Requires-Dist: {name}=={_version(name)}" for name in NEEDED]
    return "\n".join([*lines, ""])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise SettingsError(
            f"spark package: {name} is not installed here, and a Spark job needs it",
            fix="pip install 'cdc-pipeline[fast]'",
        ) from None


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
