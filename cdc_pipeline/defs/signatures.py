"""Signatures of the functions of assets and checks, computed once."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def fixed_signature(function: F) -> F:
    """Keep the function's signature in it; of each function, Dagster asks for it twenty times.

    For functions made once per table: computing signatures is a third of building their
    definitions.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function
