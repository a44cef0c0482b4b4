"""Back-off: failures in a row, and the pause before the next attempt."""

from dataclasses import dataclass, replace

FIRST_SECONDS = 60
LONGEST_SECONDS = 3600
KILLS_FORGIVEN = 10
"""Number of runs in a row that may end without an error (killed, out of memory) and are restarted
at once, because such an end need not be due to their table. More of them count as failures."""


@dataclass(frozen=True)
class Failures:
    """Failures in a row. `since_us`: the end of the first run, `last_us`: of the last one.

    `kills`: runs that ended without an error since the last run with one.
    """

    count: int
    kills: int
    since_us: int
    last_us: int
    cause: str

    @property
    def pause_seconds(self) -> float:
        """Pause in seconds: 60 after the first failure, doubled each time, 3600 at most."""
        return min(FIRST_SECONDS * 2 ** (self.count - 1), LONGEST_SECONDS) if self.count else 0

    @property
    def are_kills(self) -> bool:
        """Whether all of them ended without an error."""
        return self.count == max(0, self.kills - KILLS_FORGIVEN)

    def wait_seconds(self, now_us: int) -> float:
        """Return the rest of the pause in seconds. A clock that was set back does not extend it."""
        left = self.pause_seconds - (now_us - self.last_us) / 1_000_000
        return max(0.0, min(left, self.pause_seconds))

    def describe(self, now_us: int) -> str:
        """Format number of failures, cause and next attempt, for people."""
        times = "once" if self.count == 1 else f"{self.count} times in a row"
        wait = self.wait_seconds(now_us)
        again = f"again in {wait:.0f} s (pause {self.pause_seconds:.0f} s)" if wait else "due again"
        return f"failed {times}, {again}: {self.cause}"


def fail(before: Failures | None, at_us: int, cause: str | None, *, by_hand: bool) -> Failures:
    """Count one more failure; `cause`: None for a run that ended without an error.

    `by_hand`: a person started the run, which resets earlier failures.
    """
    if before is None or by_hand:
        before = Failures(0, 0, at_us, at_us, "")
    if cause is not None:
        return replace(before, count=before.count + 1, kills=0, last_us=at_us, cause=cause)
    kills = before.kills + 1
    return replace(
        before,
        count=before.count + (kills > KILLS_FORGIVEN),
        kills=kills,
        last_us=at_us,
        cause=before.cause or "the run ended without saying why",
    )
