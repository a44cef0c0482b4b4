"""Liveness: whether a run that nobody saw end is still at work.

A process that is killed together with who started it ends no run in Dagster's books. So what counts
is the capture log: the entries of the run, and a bounded time since it was asked for.
"""

SILENCE_MARGIN_SECONDS = 60
"""Time to start a process and to land the last batch."""


def is_by_run(owner: str, run_id: str) -> bool:
    """Whether a log entry's owner (`host:pid:run`, the run shortened) is this run."""
    parts = owner.split(":")
    return len(parts) > 2 and parts[-1] != "" and run_id.startswith(parts[-1])


def is_by_person(owner: str) -> bool:
    """Whether no run of Dagster wrote the entry, but a command (`host:pid`)."""
    return owner.count(":") == 1


def is_alive(*, signs_us: list[int], now_us: int, silence_seconds: float) -> bool:
    """Whether the newest sign of a run's life is younger than `silence_seconds`.

    `signs_us`: when it was asked for, when it began, when it last wrote to the log. A sign from the
    future, by a clock that is wrong, counts only as far as it is not further away than that.
    """
    silence_us = int(silence_seconds * 1_000_000)
    return any(-silence_us < now_us - sign < silence_us for sign in signs_us)
