"""The context of long work: where it reports progress, and how it waits."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class RunContext:
    """The last parameter of long work. `progress` receives one line of text for people."""

    progress: Callable[[str], object] = lambda _: None
    sleep: Callable[[float], object] = time.sleep

    def within(self, part: str) -> "RunContext":
        """Return a context for a part of the work, whose name precedes each line."""
        return replace(self, progress=lambda line: self.progress(f"{part}: {line}"))


SILENT = RunContext()
"""No progress reports; real sleep."""
