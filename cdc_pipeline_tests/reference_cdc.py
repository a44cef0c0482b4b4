"""Which landed rows `cdc` must have, in plain Python: for tests that land real changes."""

from collections.abc import Iterable
from typing import NamedTuple

COLUMNS = "uuid, generation, keys, op, new_image, write_time_us, transport, event_id"


class Landed(NamedTuple):
    """What decides of a landed row, in the order of `COLUMNS`."""

    uuid: str
    generation: int
    keys: str
    op: str
    new_image: str | None
    write_time_us: int
    transport: str
    event_id: str

    @property
    def is_captured(self) -> bool:
        return self.transport != "export" and (self.transport != "read" or self.event_id != "")


def cdc_of(rows: Iterable[Landed]) -> set[str]:
    """Identities of the rows: captured ones, and healed ones that nothing else tells."""
    every = list(rows)
    of_item: dict[str, list[Landed]] = {}
    for row in every:
        of_item.setdefault(row.keys, []).append(row)
    return {
        row.uuid
        for row in every
        if row.is_captured or not any(_tells(other, row) for other in of_item[row.keys])
    }


def _tells(other: Landed, healed: Landed) -> bool:
    later = other.generation > healed.generation
    if healed.transport == "read":
        return later and other.write_time_us <= healed.write_time_us
    if (other.op == "D") != (healed.op == "D") or other.new_image != healed.new_image:
        return False
    if not other.is_captured:
        return later and other.transport == "export" and other.write_time_us == healed.write_time_us
    units = (1, 1000, 1_000_000) if other.transport in ("dynamodb_streams", "read") else (1, 1000)
    return other.write_time_us in {healed.write_time_us // unit * unit for unit in units}
