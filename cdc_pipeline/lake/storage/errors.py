"""Errors of storage, as the lake's."""

from collections.abc import Iterator
from contextlib import contextmanager

from cdc_pipeline.core.errors import LakeError


@contextmanager
def storage_errors(location: str) -> Iterator[None]:
    """Raise `LakeError` with the location for errors of the file system."""
    try:
        yield
    except OSError as error:
        raise LakeError(
            f"lake: writing below {location}: {error}",
            fix="check that the location exists, is writable and has free space",
        ) from error
