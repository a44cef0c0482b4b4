"""What Dagster's web interface tells of its automation: every tick, and how each ended."""

from typing import Any

from cdc_pipeline_tests.ui.stack import ask

LOCATION = "cdc_pipeline.definitions"
_TICKS = "status ticks(limit: 100000) { status skipReason error { message } }"
_AUTOMATION = f"""query ($repository: RepositorySelector!) {{
  sensorsOrError(repositorySelector: $repository) {{
    ... on Sensors {{ results {{ name minIntervalSeconds sensorState {{ {_TICKS} }} }} }} }}
  schedulesOrError(repositorySelector: $repository) {{
    ... on Schedules {{ results {{ name scheduleState {{ {_TICKS} }} }} }} }}
}}"""


def automation(address: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All sensors and all schedules with their ticks."""
    repository = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
    answer = ask(address, _AUTOMATION, repository=repository)
    return answer["sensorsOrError"]["results"], answer["schedulesOrError"]["results"]


def failed_ticks(address: str) -> set[str]:
    """Each tick that failed, by its sensor or schedule, with what it said."""
    sensors, schedules = automation(address)
    states = {found["name"]: found["sensorState"] for found in sensors}
    states |= {found["name"]: found["scheduleState"] for found in schedules}
    return {
        f"{name}: {tick['error']['message'] if tick['error'] else tick['status']}"
        for name, state in states.items()
        for tick in state["ticks"]
        if tick["status"] == "FAILURE" or tick["error"]
    }
