"""Keeps a provably complete analytical copy of DynamoDB tables in a data lake.

`connect`, `Lake`, `load_settings` and `CdcPipelineError` are public; each loads its module on first
use, because the command line and the Lambda function import this package, too.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CdcPipelineError": "core.errors",
    "Lake": "lake.lake",
    "connect": "lake",
    "load_settings": "settings.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
