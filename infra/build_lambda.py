"""Packs the Lambda function: the handler and those modules of `core` that it needs."""

import hashlib
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_CORE = (
    *("__init__", "errors", "transports", "items/__init__", "items/attributes"),
    *(
        f"changes/{name}"
        for name in (
            *("__init__", "change", "forwarded", "kinesis", "landing_columns", "order"),
            *("ownership", "write_times"),
        )
    ),
)
_FILES = {
    "lambda_handler.py": _ROOT / "infra" / "lambda_handler.py",
    "cdc_pipeline/__init__.py": _ROOT / "cdc_pipeline" / "__init__.py",
    **{
        f"cdc_pipeline/core/{name}.py": _ROOT / "cdc_pipeline" / "core" / f"{name}.py"
        for name in _CORE
    },
}


def build(target: Path) -> None:
    """Write the zip; the same sources give the same bytes, on every machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for name, source in sorted(_FILES.items()):
            # Date, system and permissions are told, and nothing is compressed: zlib's versions
            # compress differently.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, source.read_bytes())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    build(path)
    data = path.read_bytes()
    print(f"{path}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
