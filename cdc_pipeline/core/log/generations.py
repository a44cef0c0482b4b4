"""The generation of a change by its write time.

A stream delivers changes in order, so whatever is read later belongs to the present generation.
Transports ordered by time deliver changes late and repeatedly: a change written before the present
generation began would override newer changes of the generation before, and the heal between the
two. It belongs to the generation of its time. Changes from before capture began have a generation
of their own: the stream may have been off, or have lost records, before capture checked it, so its
remaining records must not override the baseline.
"""

from cdc_pipeline.core.log.entries import FIRST_GENERATION, PAST_GENERATION
from cdc_pipeline.core.log.state import LogState

_BEGIN_NOTHING = ("before capture", "objects lost")
"""Causes of gaps that backfills open and heal; capture continues in its generation."""


def heal_generations(state: LogState) -> set[int]:
    """Return the generations with changes from heals only."""
    gaps = (state.gaps[gap] for gap in state.heals)
    return {gap.heal_generation for gap in gaps if gap.cause not in _BEGIN_NOTHING}


class Generations:
    """Generations of a table's present transport; they begin at whole ms, as write times may."""

    def __init__(self, state: LogState) -> None:
        began = {FIRST_GENERATION: (state.began_us, PAST_GENERATION)}
        began |= {
            gap.heal_generation + 1: (gap.to_us, gap.heal_generation - 1)
            for gap in state.gaps.values()
            if gap.cause not in _BEGIN_NOTHING
        }
        for baseline in state.baselines.values():
            if baseline.generation > FIRST_GENERATION:
                began[baseline.generation] = (baseline.recorded_us, baseline.generation - 1)
        self._began_ms: list[tuple[int, int]] = []
        generation = state.generation
        while generation in began:  # stops at a switch of transports: nothing is older
            began_us, before = began[generation]
            self._began_ms.append((began_us // 1000, generation))
            generation = before
        self._first = generation

    def at(self, write_time_us: int) -> int:
        """Return the generation of a write time."""
        time_ms = write_time_us // 1000
        return next((g for began_ms, g in self._began_ms if time_ms >= began_ms), self._first)
