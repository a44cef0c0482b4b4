"""The definition of what an envelope becomes, held against the corpus of envelopes."""

import pytest
from hypothesis import given

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.kinesis import decoded, from_envelope, read_envelope
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import canonical_item
from cdc_pipeline.core.transports import KINESIS
from cdc_pipeline_tests.envelopes import (
    ENVELOPES,
    TABLE_ID,
    Envelope,
    Facts,
    blobs,
    expected,
    twice,
)
from cdc_pipeline_tests.strategies import items


def _read(blob: bytes) -> Change | str:
    try:
        return from_envelope(read_envelope(blob), table_id=TABLE_ID)
    except UnreadableError as error:
        return error.reason


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: envelope.name)
def test_the_corpus(envelope: Envelope) -> None:
    facts = envelope.becomes
    change = expected(facts, transport=KINESIS) if isinstance(facts, Facts) else facts
    assert _read(envelope.blob) == change


@given(items)
def test_what_is_encoded_twice_comes_back(item: dict) -> None:
    assert canonical_item(decoded(twice(item), 1)) == canonical_item(item)


@given(blobs())
def test_every_record_is_a_change_or_has_a_reason(blob: bytes) -> None:
    found = _read(blob)
    assert isinstance(found, Change) or found
