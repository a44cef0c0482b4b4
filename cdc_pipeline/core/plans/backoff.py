"""Back-off: how often something failed in a row, and how long it is left alone after that."""

from dataclasses import dataclass, replace

FIRST_SECONDS = 60
LONGEST_SECONDS = 3600
KILLS_FORGIVEN = 10
"""Runs that end without a word (killed, out of memory) say nothing of what they were about, so as
many are started again at once. More of them in a row count as failures."""


@dataclass(frozen=True)
class Failures:
    """Failures in a row. `since_us`: the end of the first run, `last_us`: of the last one.

    `kills`: runs among them that ended without a word since the last one that said why.
    """

    count: int
    kills: int
    since_us: int
    last_us: int
    cause: str

    @property
    def pause_seconds(self) -> float:
        """60 s after the first failure, then twice as long each time, an hour at most."""
        return min(FIRST_SECONDS * 2 ** (self.count - 1), LONGEST_SECONDS) if self.count else 0

    @property
    def are_kills(self) -> bool:
        """Whether no run of them said why it ended."""
        return self.count == max(0, self.kills - KILLS_FORGIVEN)

    def wait_seconds(self, now_us: int) -> float:
        """How much of the pause is left. A clock that was set back does not make it longer."""
        left = self.pause_seconds - (now_us - self.last_us) / 1_000_000
        return max(0.0, min(left, self.pause_seconds))

    def describe(self, now_us: int) -> str:
        """How often, why, and when it is tried again."""
        times = "once" if self.count == 1 else f"{self.count} times in a row"
        wait = self.wait_seconds(now_us)
        again = f"again in {wait:.0f} s (pause {self.pause_seconds:.0f} s)" if wait else "due again"
        return f"failed {times}, {again}: {self.cause}"


def fail(before: Failures | None, at_us: int, cause: str | None, *, by_hand: bool) -> Failures:
    """One more failure; `cause`: None for a run that ended without a word.

    `by_hand`: a person started it, so that what failed before is forgotten.
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
