"""Project errors as Dagster failures with a readable description."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError


@contextmanager
def readable_failures() -> Iterator[None]:
    """Raise `CdcPipelineError` as `dg.Failure` with its message as description and its fix."""
    try:
        yield
    except CdcPipelineError as error:
        metadata = {"fix": error.fix} if error.fix else None
        raise dg.Failure(description=str(error), metadata=metadata) from None
