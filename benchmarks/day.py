"""A day of publications, simulated: which files they write, with the product's own decisions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cdc_pipeline.lake.iceberg.files import LiveFiles
from cdc_pipeline.lake.state.row_delta import merged_files

MINUTES = 24 * 60
_SEED = 1


@dataclass
class Day:
    """What a day's publications write: rows and places of row deltas, number of folds and merges.

    `files`: the most data files that a reader opens.
    """

    rows: int = 0
    places: int = 0
    folds: int = 0
    merges: int = 0
    files: int = 0


@dataclass(frozen=True)
class _File:
    record_count: int
    file_size_in_bytes: int


@dataclass(frozen=True)
class _Entry:
    data_file: _File


def simulate(items: int, changes: int, row_bytes: int, fold_percent: int = 20) -> Day:
    """Publish `changes` updates of random items each minute; `row_bytes`: of a row in a file."""
    print(f"simulated day: seed {_SEED}")
    draw, day = np.random.default_rng(_SEED), Day()
    home = np.zeros(items, np.int32)  # the file of each item's live row
    rows, dead = {0: items}, {0: 0}
    for minute in range(1, MINUTES + 1):
        keys = np.unique(draw.integers(0, items, changes))
        stored = sum(rows.values())
        if sum(dead.values()) + len(keys) > stored * fold_percent / 100:
            home[:] = 0
            rows, dead = {0: items}, {0: 0}
            day.folds += 1
            continue
        for file, count in zip(*np.unique(home[keys], return_counts=True), strict=True):
            dead[int(file)] += int(count)
        home[keys] = minute
        names = list(rows)
        entries: Any = [_Entry(_File(rows[n], rows[n] * row_bytes)) for n in names]
        merged = [names[index] for index in merged_files(LiveFiles(entries, []), len(keys))]
        live = len(keys)
        if merged:
            moved = np.isin(home, merged)
            home[moved] = minute
            live += int(moved.sum())
            day.merges += 1
            day.places += sum(dead.values())
            for name in merged:
                del rows[name], dead[name]
        day.places += len(keys)
        rows[minute], dead[minute] = live, 0
        day.rows += live
        day.files = max(day.files, len(rows))
    return day
