"""The capture log's model: entries, and the state that they add up to.

The log is the only record of capture. Entry *n* is one atomic step; a state is the sum of all
entries up to its `n`. `core.log.json_format` has the JSON of both; `lake.storage.log` stores
entries and resolves races between writers.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import (
    FIRST_GENERATION,
    NOTHING_LATE,
    Baseline,
    Cutover,
    Erasure,
    Gap,
    Heal,
    LandedObject,
    LateChanges,
    QuarantinedObject,
    ShardState,
    SourceFile,
    StreamRef,
)
from cdc_pipeline.core.log.heartbeat import Heartbeat
from cdc_pipeline.core.names import entry_number

_PROGRESS = frozenset({"shards", "discovered_us", "replicated_us", "clock_offset_us"})
"""Fields of an entry that a heartbeat can hold in its place."""

QUARANTINED_KEPT = 1000
"""Most quarantined objects that a state lists; older ones are in its sums only."""


@dataclass(frozen=True)
class Entry:
    """One atomic step of capture; it contains changed parts only.

    `completes`: earlier entries whose bare events this one completes. `discovered_us`: every shard
    created before this time is known. `resumed_us`: the first listing after an outage as long
    as the stream's retention. `replaced`: objects whose rows are in `objects` from now on;
    `removed`: replaced objects that are deleted. `lost`: objects that are gone or damaged beyond
    repair; nothing reads them any more. `cut`: a switch of transports begins. `replicated_us`: end
    of the time for which DynamoDB's count of records not replicated to Kinesis was checked.
    `files`: objects of Firehose whose records are in `objects`; listings skip those that arrived
    before the day `files_from`. `late`: changes among `objects` below the watermark.
    `clock_offset_us`: how far the writer's clock was ahead of AWS's.
    """

    n: int
    nonce: str
    owner: str
    at_us: int
    stream: StreamRef | None = None
    shards: tuple[ShardState, ...] = ()
    forgotten: tuple[str, ...] = ()
    objects: tuple[LandedObject, ...] = ()
    quarantined: tuple[QuarantinedObject, ...] = ()
    discovered_us: int | None = None
    resumed_us: int | None = None
    baseline: Baseline | None = None
    gap: Gap | None = None
    heal: Heal | None = None
    completes: tuple[int, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    erasure: Erasure | None = None
    cut: Cutover | None = None
    replicated_us: int | None = None
    files: tuple[SourceFile, ...] = ()
    files_from: str | None = None
    late: LateChanges | None = None
    clock_offset_us: int | None = None


@dataclass
class LogState:
    """Sum of the log up to and including entry `n` (0: nothing was ever captured).

    `replaced`: objects replaced by compaction and not deleted yet, with the time in µs. `began_us`:
    when capture's first positions were recorded. `lost`: the objects that are gone or damaged.
    `cut`: an unfinished switch of transports. `erasures`: the last one of each key, by key hash.
    `files`: objects of Firehose, by URI, that arrived on the day `files_from` or later.
    `legacy_us`: the newest time of a row from an older Lambda. `late`: all changes that landed
    below the watermark, the last ones at `late_at_us`. `clock_offset_us`: how far the clock was
    ahead of AWS's at its last measurement. `quarantined`: the newest of these objects; older ones,
    up to entry `summed_to`, count in `quarantined_sums`, records by reason.

    Not of the log, and not in summaries: `digest`, of the text of entry `n`, "": unknown;
    `summary`, number of the newest summary known; `heartbeat`, whose progress is in the fields
    above until the next entry, and `entry_us`, the time of entry `n` beneath it.
    """

    n: int = 0
    at_us: int = 0
    stream: StreamRef | None = None
    shards: dict[str, ShardState] = field(default_factory=dict)
    objects: dict[str, LandedObject] = field(default_factory=dict)
    quarantined: dict[str, QuarantinedObject] = field(default_factory=dict)
    baselines: dict[int, Baseline] = field(default_factory=dict)
    gaps: dict[int, Gap] = field(default_factory=dict)
    heals: dict[int, Heal] = field(default_factory=dict)
    incomplete: list[int] = field(default_factory=list)
    discovered_us: int = 0
    resumed_us: int = 0
    began_us: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    lost: dict[str, LandedObject] = field(default_factory=dict)
    erasures: dict[str, Erasure] = field(default_factory=dict)
    files: dict[str, SourceFile] = field(default_factory=dict)
    files_from: str = ""
    legacy_us: int = 0
    last_owner: str = ""
    cut: Cutover | None = None
    replicated_us: int = 0
    late: LateChanges = NOTHING_LATE
    late_at_us: int = 0
    clock_offset_us: int | None = None
    summed_to: int = 0
    quarantined_sums: dict[str, int] = field(default_factory=dict)
    digest: str = field(default="", compare=False)
    summary: int = field(default=0, compare=False)
    heartbeat: Heartbeat | None = field(default=None, compare=False)
    _beneath: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def copy(self) -> "LogState":
        """Return a state that changes independently; its parts are immutable and shared."""
        copied = dataclasses.replace(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list):
                setattr(copied, name, value.copy())
        return copied

    @property
    def entry_us(self) -> int:
        """Time of entry `n`, whatever the heartbeat says."""
        return self._beneath.get("at_us", self.at_us)

    def is_progress(self, parts: Mapping[str, Any]) -> bool:
        """Whether parts of an entry say only how far known shards were read, finding nothing."""
        filled = {name for name, value in parts.items() if value not in (None, ())} - {"nonce"}
        if parts.get("files_from") == self.files_from:
            filled.discard("files_from")
        return filled <= _PROGRESS and all(map(self._has_only_aged, parts.get("shards", ())))

    def _has_only_aged(self, shard: ShardState) -> bool:
        known = self.shards.get(shard.shard_id)
        if known is None or shard.status != "reading" or shard.read_to_us < known.read_to_us:
            return False
        return dataclasses.replace(known, read_to_us=shard.read_to_us) == shard

    def beat(self, parts: Mapping[str, Any], **written: Any) -> None:
        """Add progress (`is_progress`) by a heartbeat of its own; `written`: its other fields."""
        before = self.heartbeat or Heartbeat(self.n, self.digest, 0, self.at_us, self.last_owner)
        moved = {shard.shard_id: shard.read_to_us for shard in parts.get("shards", ())}
        shards = {**before.shards, **moved}
        others = {name: parts.get(name) for name in _PROGRESS - {"shards"}}
        found = {name: value for name, value in others.items() if value is not None}
        self.set_heartbeat(dataclasses.replace(before, shards=shards, **found, **written))

    def set_heartbeat(self, heartbeat: Heartbeat | None) -> None:
        """Show the progress of this heartbeat instead of an earlier one; None: of none."""
        for shard in self._beneath.pop("shards", ()):
            self.shards[shard.shard_id] = shard
        vars(self).update(self._beneath)
        self.heartbeat, self._beneath = heartbeat, {}
        if heartbeat is None:
            return
        known = [s for i in heartbeat.shards if (s := self.shards.get(i)) and s.status == "reading"]
        seen = {name: getattr(heartbeat, name) for name in ("at_us", *sorted(_PROGRESS))}
        del seen["shards"]
        seen = {name: value for name, value in seen.items() if value is not None}
        self._beneath = {name: getattr(self, name) for name in (*seen, "last_owner")}
        self._beneath["shards"] = known
        vars(self).update(seen, last_owner=heartbeat.owner)
        for shard in known:
            read_to_us = max(shard.read_to_us, heartbeat.shards[shard.shard_id])
            self.shards[shard.shard_id] = dataclasses.replace(shard, read_to_us=read_to_us)

    def with_progress(self, entry: Entry) -> Entry:
        """Return the next entry with the heartbeat's progress, which ends with it."""
        beat = self.heartbeat
        if beat is None:
            return entry
        named = {*(shard.shard_id for shard in entry.shards), *entry.forgotten}
        moved = (s.shard_id for s in self._beneath["shards"] if s.shard_id not in named)
        kept = {n: getattr(beat, n) for n in _PROGRESS - {"shards"} if getattr(entry, n) is None}
        shards = entry.shards + tuple(self.shards[shard_id] for shard_id in moved)
        return dataclasses.replace(entry, shards=shards, **kept)

    def apply(self, entry: Entry) -> None:
        """Add the next entry; raises `LakeError` unless it has the next number."""
        if entry.n != self.n + 1:
            raise LakeError(f"capture log: entry {entry.n} cannot follow entry {self.n}")
        self.set_heartbeat(None)
        self.digest = ""
        self.n, self.at_us = entry.n, entry.at_us
        self.cut = entry.cut or self.cut
        if entry.stream is not None:
            self.stream = entry.stream
            self.began_us = self.began_us or entry.stream.recorded_us
            if self.cut is not None and self.cut.transport == entry.stream.transport:
                self.cut = None
        # A new stream may reuse the shard ids of the former one.
        for shard_id in entry.forgotten:
            self.shards.pop(shard_id, None)
        self.shards.update((s.shard_id, s) for s in entry.shards)
        for landed in entry.objects:
            # Names of compacted, healed and backfilled objects contain no entry.
            known = landed if landed.entry else dataclasses.replace(landed, through=entry.n)
            self.objects[landed.key] = known
        for key in entry.replaced:
            del self.objects[key]
            self.replaced[key] = entry.at_us
        for key in entry.lost:
            self.lost[key] = self.objects.pop(key)
            self.replaced[key] = entry.at_us
        for key in entry.removed:
            self.replaced.pop(key, None)
        self._apply_quarantined(entry)
        # Rewritten bare objects are pending, if at all, under the entry that landed them.
        if any(landed.bare for landed in entry.objects) and not entry.replaced:
            self.incomplete.append(entry.n)
        self.incomplete = [n for n in self.incomplete if n not in entry.completes]
        if entry.discovered_us is not None:
            self.discovered_us = entry.discovered_us
        if entry.resumed_us is not None:
            self.resumed_us = entry.resumed_us
        if entry.replicated_us is not None:
            self.replicated_us = entry.replicated_us
        if entry.baseline is not None:
            self.baselines[entry.baseline.generation] = entry.baseline
        if entry.gap is not None:
            self.gaps[entry.n] = dataclasses.replace(entry.gap, entry=entry.n)
        if entry.heal is not None:
            self.heals[entry.heal.gap] = entry.heal
        if entry.erasure is not None:
            self.erasures[entry.erasure.key_hash] = entry.erasure
        self._apply_files(entry)
        if entry.late is not None:
            behind_us = max(self.late.behind_us, entry.late.behind_us)
            self.late = LateChanges(self.late.rows + entry.late.rows, behind_us)
            self.late_at_us = entry.at_us
        if entry.clock_offset_us is not None:
            self.clock_offset_us = entry.clock_offset_us
        self.last_owner = entry.owner

    def _apply_files(self, entry: Entry) -> None:
        self.files_from = entry.files_from or self.files_from
        self.files.update((file.uri, file) for file in entry.files)
        self.legacy_us = max([self.legacy_us, *(file.legacy_us for file in entry.files)])
        if entry.files or entry.files_from:
            kept = (f for f in self.files.values() if f.arrived >= self.files_from or f.unread)
            self.files = {file.uri: file for file in kept}

    def _apply_quarantined(self, entry: Entry) -> None:
        for quarantined in entry.quarantined:
            self.quarantined[quarantined.key] = dataclasses.replace(quarantined, was=None)
            self._sum(quarantined.was or {}, -1)
        while len(self.quarantined) > QUARANTINED_KEPT:
            oldest = self.quarantined.pop(next(iter(self.quarantined)))
            self.summed_to = max(self.summed_to, entry_number(oldest.key) or 0)
            self._sum(oldest.reasons, 1)

    def _sum(self, reasons: Mapping[str, int], sign: int) -> None:
        for reason, count in reasons.items():
            self.quarantined_sums[reason] = self.quarantined_sums.get(reason, 0) + sign * count
        self.quarantined_sums = {r: n for r, n in self.quarantined_sums.items() if n > 0}

    @property
    def quarantined_reasons(self) -> dict[str, int]:
        """Number of unreadable records, by reason."""
        counts = Counter(self.quarantined_sums)
        for quarantined in self.quarantined.values():
            counts.update(quarantined.reasons)
        return {reason: count for reason, count in counts.items() if count}

    def may_be_quarantined(self, key: str) -> bool:
        """Whether a key may be of a quarantined object: listed, or as old as the sums."""
        number = entry_number(key) if key.endswith(".jsonl") else None
        return key in self.quarantined or (number is not None and number <= self.summed_to)

    @property
    def generation(self) -> int:
        """Generation in which changes land now."""
        return self.stream.generation if self.stream else 0

    @property
    def watermark_us(self) -> int:
        """Every change written before this time has landed (µs since the epoch; 0: unknown).

        The minimum of `read_to_us` over unfinished shards, and of the last complete listing of
        shards, because an unlisted shard may hold older changes. During a switch of transports,
        changes written from its cut on wait for the new transport.
        """
        reading = [s.read_to_us for s in self.shards.values() if s.status == "reading"]
        cut = [self.cut.at_us] if self.cut else []
        return min([self.discovered_us, *reading, *cut])

    @property
    def last_change_us(self) -> int | None:
        """Write time of the newest landed change."""
        return max((o.max_write_us for o in self.objects.values()), default=None)

    @property
    def staged(self) -> Baseline | None:
        """The newest baseline with verified items in the lake, without shadows."""
        done = [b for b in self.baselines.values() if b.is_staged]
        return max(done, key=lambda b: b.generation, default=None)

    @property
    def shadow(self) -> Baseline | None:
        """The shadow baseline beside the live one, staged or in progress."""
        newest = max(self.baselines.values(), key=lambda b: b.generation, default=None)
        return newest if newest and newest.shadow and not newest.discarded else None

    def objects_of_day(self, day: str) -> list[LandedObject]:
        """List landing objects of one write day, in log order."""
        return sorted((o for o in self.objects.values() if o.day == day), key=lambda o: o.key)

    def open_gaps(self, generation: int = 0) -> list[Gap]:
        """List the open gaps of a state of this generation, oldest first.

        A baseline of a later generation was exported after the gap and does not need its heal, and
        no state needs the time before capture.
        """
        generation = max(generation, FIRST_GENERATION)
        return [
            gap
            for n, gap in sorted(self.gaps.items())
            if gap.heal_generation >= generation and not self.is_healed(n)
        ]

    def is_healed(self, gap: int) -> bool:
        """Whether all lost changes of a gap have landed."""
        heal = self.heal_of(gap)
        return heal is not None and heal.healed

    def heal_of(self, gap: int) -> Heal | None:
        """Return the heal that includes a gap, None before it is planned."""
        shared = (heal for heal in self.heals.values() if gap in heal.also)
        return self.heals.get(gap) or next(shared, None)

    def horizon(self, generation: int) -> int:
        """Return the last log entry that a state of this generation may show: up to an open gap."""
        return min((gap.entry for gap in self.open_gaps(generation)), default=self.n)

    def complete_to_us(self, generation: int = 0) -> int:
        """Return the watermark, or the beginning of the first open gap if it is earlier."""
        return min([self.watermark_us, *(gap.from_us for gap in self.open_gaps(generation))])

    def delta(self, *, generation: int, after: int) -> list[LandedObject]:
        """List objects of `generation` and later, from entries after `after` up to the horizon."""
        until = self.horizon(generation)
        chosen = (
            o
            for o in self.objects.values()
            if after < o.entry <= until and o.generation >= generation
        )
        return sorted(chosen, key=lambda o: o.key)
