"""Crons in the settings: refused are those that Dagster refuses, and those that never come."""

import random
import warnings
from pathlib import Path

import dagster as dg
import pytest

# What the daemon asks for the times of a schedule; nothing public does.
from dagster._utils.schedules import cron_string_iterator

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.load import parse_settings

_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_NAMES = (
    ["H"],
    ["H"],
    ["L", "l", "W"],
    ["jan", "FEB", "dec", "foo"],
    ["mon", "SUN", "L5", "l1", "5#3", "1#6", "mon#2", "sun-mon", "fri-mon"],
)


def _refusal(cron: str) -> str | None:
    raw = {
        "lake": "./lake",
        "tables": [{"name": "orders", "snapshot": {"schedule": cron}}],
    }
    try:
        parse_settings(raw, Path("here.yaml"))
    except SettingsError as error:
        return error.message
    return None


def _works_in_dagster(cron: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that do not divide their range
            dg.ScheduleDefinition(name="a", job_name="b", cron_schedule=cron)
        next(cron_string_iterator(1_790_000_000, cron, "UTC"))
    except (dg.DagsterInvalidDefinitionError, ValueError):
        return False
    return True


@pytest.mark.parametrize(
    ("cron", "accepted"),
    [
        ("0 3 * * 0", True),
        ("0 3 * * 7", True),
        ("*/5 8-18 * jan-mar,DEC mon-fri", True),
        ("0 0 L * *", True),
        ("0 0 * * 5#3", True),
        ("0 0 * * L5", True),
        ("0 0 29 2 *", True),
        ("@daily", True),
        ("@Hourly", True),
        (" 0  3 * * * ", True),
        ("", False),
        ("daily", False),
        ("@reboot", False),
        ("* * * *", False),
        ("0 0 3 * * *", False),  # seconds
        ("60 * * * *", False),
        ("0 24 * * *", False),
        ("0 0 0 * *", False),
        ("0 0 * 13 *", False),
        ("0 0 * * 8", False),
        ("0,,5 * * * *", False),
        ("*/0 * * * *", False),
        ("5- * * * *", False),
        ("1-2-3 * * * *", False),
        ("mon * * * *", False),
        ("0 0 * * foo", False),
        ("0 0 * * 1#6", False),
        ("H H * * *", False),
        ("-1 * * * *", False),
        ("99999999999999999999 * * * *", False),
        ("*/99999999999999999999 * * * *", True),
        ("0 0 30 2 *", False),
        ("0 0 31 4,6 *", False),  # Dagster takes it, and then each tick of its scheduler fails
    ],
)
def test_as_in_dagster(cron: str, accepted: bool) -> None:
    assert (_works_in_dagster(cron), _refusal(cron) is None) == (accepted, accepted)


def test_random_crons_are_judged_as_in_dagster() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    crons = {_random_cron(rng) for _ in range(2000)}
    judged = {cron: _refusal(cron) is None for cron in crons}
    assert judged == {cron: _works_in_dagster(cron) for cron in crons}
    assert 20 < sum(judged.values()) < len(judged) - 20


def _random_cron(rng: random.Random) -> str:
    fields = [",".join(_part(rng, i) for _ in range(rng.choice([1, 1, 1, 2]))) for i in range(5)]
    if rng.random() < 0.05:
        fields.append("0")
    if rng.random() < 0.05:
        fields.pop()
    return rng.choice([" ", " ", "  "]).join(fields)


def _part(rng: random.Random, field: int) -> str:
    low, high = _FIELDS[field]

    def number() -> str:
        inside = rng.random() < 0.95
        return str(rng.randint(low, high) if inside else rng.choice([low - 1, high + 1]))

    first, last, step = number(), number(), number()
    named = rng.choice(_NAMES[field])
    plain = ["*", "*", "*", first, first, first, f"{first}-{last}", f"*/{step}"]
    return rng.choice([*plain, f"{first}-{last}/{step}", f"{first}/{step}", "?", named])


@pytest.mark.parametrize(
    ("cron", "said"),
    [("0 0 3 * * *", "five fields"), ("0 0 31 4 *", "no date")],
)
def test_a_refusal_says_where_what_and_what_is_allowed(cron: str, said: str) -> None:
    message = _refusal(cron)
    assert message is not None
    for part in ("here.yaml", f"tables.0.snapshot.schedule: found {cron!r}", said, "'0 3 * * 0'"):
        assert part in message
