"""Errors that users can act on, as Dagster failures with the message up front."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError


@contextmanager
def readable_failures() -> Iterator[None]:
    """Raise our errors as `dg.Failure`: what happened, to what, what to do."""
    try:
        yield
    except CdcPipelineError as error:
        metadata = {"fix": error.fix} if error.fix else None
        raise dg.Failure(description=str(error), metadata=metadata) from None
