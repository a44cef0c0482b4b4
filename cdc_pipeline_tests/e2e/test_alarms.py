"""Alarms reach people once: when something breaks, when it is well again, whatever is down."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.defs.operations.notify import NotifyError
from cdc_pipeline.defs.tables.downstream import AUTOMATIC
from cdc_pipeline.repair.heal import open_gaps
from cdc_pipeline_tests.e2e.deployment import Deployment, deploy, materializations
from cdc_pipeline_tests.e2e.world import World
from cdc_pipeline_tests.log_clock import set_log_clock

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]


class Webhook(HTTPServer):
    """Takes what is posted to it, or refuses."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.received: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/SECRET"

    def take(self) -> list[str]:
        taken, self.received = self.received, []
        return taken


class _Handler(BaseHTTPRequestHandler):
    server: Webhook  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status == 200:
            self.server.received.append(json.loads(body)["text"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as server:
        monkeypatch.setenv("ALARM_WEBHOOK", server.url)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def kind() -> str:
    return "local"


@pytest.fixture
def deployment(world: World, webhook: Webhook) -> Iterator[Deployment]:
    world.make_table("orders")
    world.configure("orders", alarms={"webhook_env": "ALARM_WEBHOOK"})
    world.put("orders", "k1")
    world.bootstrap("orders")
    with deploy(world) as made:
        yield made


def _advance(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    set_log_clock(monkeypatch, lambda: time.time() + minutes * 60)


def test_a_table_that_falls_behind(
    deployment: Deployment, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = deployment.tick("alarm_sensor").cursor
    assert webhook.take() == []
    for minutes, said in ((20, "WARN"), (70, "ERROR")):
        _advance(monkeypatch, minutes)
        cursor = deployment.tick("alarm_sensor", cursor).cursor
        (text,) = webhook.take()
        assert text.startswith(f"*cdc_pipeline: {said}: orders/current_state fresh*")
        assert f"minutes_behind {minutes}." in text
        assert "shard_sensor" in text
        cursor = deployment.tick("alarm_sensor", cursor).cursor
        assert webhook.take() == []
    monkeypatch.undo()
    deployment.world.activate(monkeypatch)
    monkeypatch.setenv("ALARM_WEBHOOK", webhook.url)
    tick = deployment.tick("alarm_sensor", cursor)
    assert [text.split("\n")[1:] for text in webhook.take()] == [
        ["recovered: orders/current_state fresh"]
    ]
    assert "every check passes" in tick.skip_message


def test_a_gap_and_its_end_while_the_webhook_is_down(
    deployment: Deployment, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    world = deployment.world
    cursor = deployment.tick("alarm_sensor").cursor
    for enabled in (False, True):
        specification = {"StreamEnabled": enabled}
        if enabled:
            specification["StreamViewType"] = "NEW_AND_OLD_IMAGES"  # type: ignore[assignment]
        world.dynamodb.update_table(TableName="orders", StreamSpecification=specification)
    deployment.run_job("capture")
    assert open_gaps(world.table_lake("orders"))
    webhook.status = 500
    with pytest.raises(NotifyError, match="the webhook in ALARM_WEBHOOK answered 500") as caught:
        deployment.tick("alarm_sensor", cursor)
    assert "SECRET" not in str(caught.value) + caplog.text
    webhook.status = 200
    cursor = deployment.tick("alarm_sensor", cursor).cursor
    (text,) = webhook.take()
    assert "ERROR: orders/raw_stream no_open_gaps (gaps 1). Fix: cdc-pipeline heal orders" in text
    world.bootstrap("orders")  # a new baseline, behind the gap
    deployment.run_job("capture")
    deployment.tick("alarm_sensor", cursor)
    (text,) = webhook.take()
    assert "recovered: orders/raw_stream no_open_gaps" in text


def test_checks_that_a_run_planned_and_never_made(
    deployment: Deployment, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run that cannot publish yet nor one that fails leaves a check without an answer."""
    cursor = deployment.tick("alarm_sensor").cursor
    assert deployment.materialize("orders", "current_state").success
    with monkeypatch.context() as early:
        early.setattr("cdc_pipeline.lake.publish.current_state.publish_current_state", _not_ready)
        result = deployment.materialize("orders", "current_state", tags={AUTOMATIC: "true"})
    assert materializations(result) == []
    made = {found.check_name: found.passed for found in result.get_asset_check_evaluations()}
    every = ("fresh", "type_conflicts", "columns_for_all_attributes")
    assert made == dict.fromkeys(every, True)
    with monkeypatch.context() as broken:
        broken.setattr("cdc_pipeline.lake.publish.current_state.publish_current_state", _stumble)
        assert not deployment.materialize("orders", "current_state").success
    cursor = deployment.tick("alarm_sensor", cursor).cursor
    fresh = dg.AssetCheckKey(dg.AssetKey(["orders", "current_state"]), "fresh")
    record = deployment.instance.get_latest_asset_check_evaluation_record(fresh)
    assert record is not None
    assert record.status.value == "SUCCEEDED", "the failed run's plan hides the answer"
    assert "every check passes" in deployment.tick("alarm_sensor", cursor).skip_message
    assert webhook.take() == []


def test_a_check_that_is_no_more_is_forgotten(deployment: Deployment, webhook: Webhook) -> None:
    cursor = json.dumps({"failing": {"gone/raw_stream no_open_gaps": "ERROR"}})
    assert "every check passes" in deployment.tick("alarm_sensor", cursor).skip_message
    assert webhook.take() == []


def test_a_topic_is_told_too(world: World) -> None:
    sns, sqs = world.client("sns"), world.client("sqs")
    topic = sns.create_topic(Name="alarms")["TopicArn"]
    queue = sqs.create_queue(QueueName="alarms")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    world.make_table("orders")
    world.configure("orders", alarms={"sns_topic": topic, "webhook_env": "NOT_SET_AT_ALL"})
    # One channel that cannot work does not keep the other from being told.
    with deploy(world) as deployment:
        deployment.materialize("orders", "current_state")
        with pytest.raises(NotifyError, match="NOT_SET_AT_ALL holds no"):
            deployment.tick("run_failure_alarm")
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    assert "orders" in message["Body"]
    assert "pitr_export" in message["Body"]


def test_a_run_that_fails_says_why_but_not_with_what(
    deployment: Deployment, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.world.dynamodb.delete_table(TableName="orders")
    deployment.materialize("orders", "pitr_export")
    cursor = deployment.tick("run_failure_alarm").cursor
    (text,) = webhook.take()
    assert text.startswith("*cdc_pipeline: a run of orders/pitr_export failed*\n")
    assert "orders__pitr_export: " in text
    assert "Fix: " in text

    monkeypatch.setattr("cdc_pipeline.lake.publish.current_state.publish_current_state", _stumble)
    deployment.materialize("orders", "current_state")
    deployment.tick("run_failure_alarm", cursor)
    (text,) = webhook.take()
    assert "orders__current_state: ValueError; see the run's log" in text
    assert "private" not in text


def _not_ready(*_: object) -> None:
    raise NotReadyError("capture has not come so far")


def _stumble(*_: object) -> None:
    raise ValueError("could not convert 'a private value'")


def test_failures_in_a_row_are_told_once_and_so_is_their_end(
    deployment: Deployment, webhook: Webhook
) -> None:
    """Of one table; what else the runs are about goes on."""
    world = deployment.world
    world.make_table("customers")
    world.configure("orders", "customers", alarms={"webhook_env": "ALARM_WEBHOOK"})
    world.dynamodb.delete_table(TableName="orders")
    cursor = None
    for number in range(3):
        assert not deployment.run_job("capture").success
        cursor = deployment.tick("run_failure_alarm", cursor).cursor
        messages = webhook.take()
        assert len(messages) == (number == 0)
        for text in messages:
            assert text.startswith("*cdc_pipeline: a run of capture orders failed*\n")
            assert "customers" not in text
    webhook.status = 500
    world.make_table("orders")
    assert deployment.run_job("capture").success
    with pytest.raises(NotifyError):
        deployment.tick("run_failure_alarm", cursor)
    webhook.status = 200
    tick = deployment.tick("run_failure_alarm", cursor)
    assert [text.split("\n")[1:] for text in webhook.take()] == [["recovered: capture orders"]]
    assert tick.skip_message == "nothing fails"
    deployment.tick("run_failure_alarm", tick.cursor)
    assert webhook.take() == []
