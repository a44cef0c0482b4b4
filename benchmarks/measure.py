"""One contender in a process of its own: CPU, wall clock and peak memory of its work alone."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cost:
    """What some work took: seconds, and the peak resident memory of its process in MB."""

    cpu: float
    wall: float
    peak_mb: float
    rows: int


def measure(work: Callable[[], int]) -> Cost:
    """Run `work`, which returns how many rows it handled, and say what it cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Cost(cpu, wall, peak, rows)


def in_own_process(module: str, *arguments: str) -> Cost:
    """`python -m module arguments`, which prints its cost by `report`."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def report(cost: Cost) -> None:
    """Print a cost for `in_own_process`."""
    print(json.dumps(asdict(cost)))
