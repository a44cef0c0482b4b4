"""The heartbeat of a capture log: what captures have proven since its newest entry."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cdc_pipeline.core.clock import utc

FORMAT = 1


@dataclass(frozen=True)
class Heartbeat:
    """Progress without changes: how far the shards were read, with nothing found in them.

    It is one object beside the log, overwritten by each capture, so that an idle table's log does
    not grow. It holds for entry `n` with the `digest` of its text alone: a log that went on, or is
    another one, ignores it, and the next entry of any writer repeats its progress. So it may be
    lost, late or old: then less is proven, and nothing is wrong.

    `summary`: number of the newest summary, 0: none. `at_us`, `owner`: of the capture that wrote
    it, as in an entry. `beats`: heartbeats since entry `n`. `clean`: the capture ended well and
    left no unlogged objects. `shards`: `read_to_us` by shard, of those that moved since entry `n`;
    the other fields are those of an entry, None: not moved.
    """

    n: int
    digest: str
    summary: int
    at_us: int
    owner: str
    beats: int = 0
    clean: bool = False
    shards: Mapping[str, int] = field(default_factory=dict)
    discovered_us: int | None = None
    replicated_us: int | None = None
    clock_offset_us: int | None = None

    def holds_for(self, n: int, digest: str) -> bool:
        """Whether it follows this entry."""
        return bool(digest) and (self.n, self.digest) == (n, digest)

    def to_json(self) -> str:
        """Serialize without empty parts."""
        parts = {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, {})}
        at = utc(self.at_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"format": FORMAT, "at": at, **parts}) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Heartbeat | None":
        """Parse a heartbeat; None for what this version cannot read, which is as good as none."""
        try:
            raw = json.loads(text)
            if raw.pop("format") != FORMAT:
                return None
            raw.pop("at")
            return Heartbeat(**raw)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
