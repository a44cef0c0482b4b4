"""One contender in a process of its own: CPU, wall clock and peak memory of its work alone."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What some work took: seconds, and the peak resident memory of its process in MB."""

    cpu: float
    wall: float
    peak_mb: float
    rows: int

    @property
    def per_row(self) -> float:
        """CPU seconds."""
        return self.cpu / self.rows


Row = tuple[str, str, Cost]
"""Work, contender, what it cost."""

Costs = dict[tuple[str, str], Cost]
"""Cost by work and contender."""


@dataclass(frozen=True)
class Target:
    """A promise about a `figure` of the costs: at least or at most `bound`."""

    claim: str
    at_least: bool
    bound: float
    figure: Callable[[Costs], float]


def cheaper(claim: str, bound: float, work: str, ours: str, other: str) -> Target:
    """`ours` handles a row for at most a `bound`th of the CPU seconds of the `other`."""
    return Target(
        claim, True, bound, lambda costs: costs[work, other].per_row / costs[work, ours].per_row
    )


def measure(work: Callable[[], int]) -> Cost:
    """Run `work`, which returns how many rows it handled, and say what it cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu, wall, peak_mb(), rows)


def peak_mb(process: int | str = "self") -> float:
    """Peak resident memory of a process; outside of Linux of this one, whatever `process` is.

    Linux lets `ru_maxrss` of a child begin at the size of its parent, so it is not asked there.
    """
    status = Path(f"/proc/{process}/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def cpu_of(process: int) -> float:
    """CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_own_process(module: str, *arguments: str) -> Cost:
    """`python -m module arguments`, which prints its cost by `report`."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def cheapest(runs: int, run: Callable[[], Cost]) -> Cost:
    """The run of some that took the least CPU: whatever else the machine does only adds to it."""
    return min((run() for _ in range(runs)), key=lambda cost: cost.cpu)


def quickest(runs: int, run: Callable[[], Cost]) -> Cost:
    """The run of some that took the least time: for what is about time, not about work."""
    return min((run() for _ in range(runs)), key=lambda cost: cost.wall)


def report(cost: Cost) -> None:
    """Print a cost for `in_own_process`."""
    print(json.dumps(asdict(cost)))
