"""What whoever starts long work gives it: where progress is reported, and how it waits."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class RunContext:
    """The last parameter of work that takes long. `progress`: takes one line for people."""

    progress: Callable[[str], object] = lambda _: None
    sleep: Callable[[float], object] = time.sleep

    def within(self, part: str) -> "RunContext":
        """The same for a part of the work, which its lines begin with."""
        return replace(self, progress=lambda line: self.progress(f"{part}: {line}"))


SILENT = RunContext()
"""Reports nothing, and waits by the clock."""
