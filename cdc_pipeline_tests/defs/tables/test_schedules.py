"""Schedules on the days around the first partition."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.settings.load import load_settings

pytestmark = [
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]


def _yesterday(folder: Path, start: date, now: datetime) -> dg.RunRequest | str:
    path = folder / "settings.yaml"
    raw = {"lake": "lake", "start_date": start.isoformat(), "tables": [{"name": "orders"}]}
    path.write_text(yaml.safe_dump(raw))
    defs = build_definitions(load_settings(path), path)
    with dg.build_schedule_context(
        scheduled_execution_time=now, repository_def=defs.get_repository_def()
    ) as context:
        tick = defs.resolve_schedule_def("yesterday").evaluate_tick(context)
    if tick.skip_message:
        return tick.skip_message
    assert tick.run_requests is not None
    (request,) = tick.run_requests
    return request


def test_yesterday_is_no_partition_before_the_first_one(tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(hour=0, minute=20)
    today = now.date()
    request = _yesterday(tmp_path, today - timedelta(days=1), now)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == (today - timedelta(days=1)).isoformat()
    for start in (today, today + timedelta(days=30)):
        assert "start_date" in str(_yesterday(tmp_path, start, now))
