"""Liveness: whether a run without a recorded end, or a server, is still at work.

If a process and its parent are killed together, Dagster records no end of the run. The capture log
decides instead: the entries of the run, and a bounded time since its request. A server has no run;
it says in what it writes to a log when it will write again at the latest.
"""

import re

SILENCE_MARGIN_SECONDS = 60
"""Time to start a process, and to land the last batch."""


def is_by_run(owner: str, run_id: str) -> bool:
    """Whether a log entry's owner (`host:pid:run`, with a shortened run id) is this run."""
    parts = owner.split(":")
    return len(parts) > 2 and parts[-1] != "" and run_id.startswith(parts[-1])


def is_by_person(owner: str) -> bool:
    """Whether a command (`host:pid`) wrote the entry, not a run of Dagster."""
    return owner.count(":") == 1


SERVER_HEARTBEAT_SECONDS = 180.0
"""Pause between two heartbeats that a server writes to a log, and between its looks at what others
wrote. Watermarks wait longer anyway, for the lag of listings (`capture.listing_lag_seconds`)."""

_SERVER = re.compile(r":serve-([0-9]{1,9})$")


def promise_seconds(every_seconds: float) -> int:
    """Seconds within which a server writes to each log again; after them others take over."""
    return int(SERVER_HEARTBEAT_SECONDS + 2 * every_seconds + SILENCE_MARGIN_SECONDS)


def server_owner(host: str, process: int, promise_seconds: int) -> str:
    """Return the owner of what a server writes; it writes to each log again within the seconds."""
    return f"{host}:{process}:serve-{promise_seconds}"


def served_until_us(owner: str, at_us: int) -> int:
    """Return the time in µs up to which a log is a live server's, by who wrote last; 0: nobody's.

    A server that is gone does not keep its promise, so others take over after it.
    """
    found = _SERVER.search(owner)
    return at_us + int(found[1]) * 1_000_000 if found else 0


def is_alive(*, signs_us: list[int], now_us: int, silence_seconds: float) -> bool:
    """Whether the newest sign of a run's life is younger than `silence_seconds`.

    `signs_us`: times of its request, its start and its last log entry. A sign in the future, from a
    wrong clock, counts only within `silence_seconds`.
    """
    silence_us = int(silence_seconds * 1_000_000)
    return any(-silence_us < now_us - sign < silence_us for sign in signs_us)
