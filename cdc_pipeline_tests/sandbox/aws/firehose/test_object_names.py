"""Names of Firehose's objects: the expressions of its prefixes."""

import re
from datetime import UTC, datetime

from cdc_pipeline.sandbox.aws.firehose.object_names import evaluate_prefix


def test_prefixes() -> None:
    moment = datetime(2026, 12, 28, 5, 6, 7, tzinfo=UTC)
    assert evaluate_prefix("a/", moment) == "a/2026/12/28/05/"
    assert evaluate_prefix("!{timestamp:yyyy/MM/dd'T'HH-mm-ss}", moment) == "2026/12/28T05-06-07"
    # The slip that many lakes have: the last days of December in the year to come.
    assert evaluate_prefix("y=!{timestamp:YYYY}/m=!{timestamp:MM}/", moment) == "y=2027/m=12/"
    assert evaluate_prefix("!{timestamp:YYYY}", datetime(2026, 12, 26, tzinfo=UTC)) == "2026"
    assert evaluate_prefix("!{timestamp:YYYY}", datetime(2027, 1, 2, tzinfo=UTC)) == "2027"
    kind = evaluate_prefix(
        "e/!{firehose:error-output-type}/!{timestamp:dd}/", moment, error_type="x"
    )
    assert kind == "e/x/28/"
    random = evaluate_prefix("!{firehose:random-string}!{timestamp:'/'}", moment)
    assert re.fullmatch(r"[0-9a-f]{11}/", random)
