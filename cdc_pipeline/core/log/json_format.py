"""The capture log as JSON: entries, and the summaries of states.

Fields and formats are those of docs/architecture.md, Stored formats.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import (
    NOTHING_LATE,
    Baseline,
    Cutover,
    Erasure,
    Gap,
    Heal,
    HealWindow,
    LandedObject,
    LateChanges,
    QuarantinedObject,
    RemovedRows,
    ShardState,
    SourceFile,
    StreamRef,
)
from cdc_pipeline.core.log.state import Entry, LogState

FORMAT = 1
FORMAT_WITH_ERASURES = 2
"""Format of entries and states with erasures: a version without erasures must refuse them."""

FORMAT_WITH_SUMS = 3
"""Format of entries and states that count quarantined objects, or keep files of Firehose, unlisted.

A version without it would remove such objects, or never try such a file again.
"""


def entry_to_json(entry: Entry) -> str:
    """Serialize an entry to readable JSON without empty parts."""
    parts = {k: v for k, v in dataclasses.asdict(entry).items() if v not in (None, ())}
    for name, optional in (("files", "unread"), ("quarantined", "was")):
        # Without these fields, older versions can still read the entry.
        if name in parts:
            parts[name] = [_without_empty(part, optional) for part in parts[name]]
    form = FORMAT_WITH_ERASURES if entry.erasure else FORMAT
    if any(file.unread for file in entry.files) or any(q.was for q in entry.quarantined):
        form = FORMAT_WITH_SUMS
    return json.dumps({"format": form, "at": _iso(entry.at_us), **parts}, indent=1) + "\n"


def entry_from_json(text: str | bytes, name: str) -> Entry:
    """Parse an entry; raises `LakeError` with `name` for a file that is none."""
    return _parse(text, name, _entry)


def state_to_json(state: LogState) -> str:
    """Serialize a state to the summary of the log up to its `n`."""
    if state.heartbeat is not None:
        state = state.copy()
        state.set_heartbeat(None)
    # `asdict` would copy every object, which takes longer than the rest of this function.
    parts = {name: vars(state)[name] for name in _stored(LogState)}
    for name in (
        "shards",
        "objects",
        "quarantined",
        "baselines",
        "gaps",
        "heals",
        "lost",
        "erasures",
        "files",
    ):
        parts[name] = list(parts[name].values())
    form = FORMAT_WITH_ERASURES if state.erasures else FORMAT
    if state.summed_to or any(file.unread for file in state.files.values()):
        form = FORMAT_WITH_SUMS
    parts["files"] = [_without_empty(vars(file), "unread") for file in state.files.values()]
    parts["quarantined"] = [_without_empty(vars(q), "was") for q in state.quarantined.values()]
    summary = {"format": form, "at": _iso(state.at_us), **parts}
    return json.dumps(summary, default=vars) + "\n"


def state_from_json(text: str | bytes, name: str) -> LogState:
    """Parse a summary; raises `LakeError` with `name` for a file that is none."""
    return _parse(text, name, _state)


def _stored(kind: type[Entry] | type[LogState]) -> list[str]:
    """Names of the stored fields; the others of a state do not count when states are compared."""
    return [field.name for field in dataclasses.fields(kind) if field.compare]


def _without_empty(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Copy a part, without the field `name` if it is empty."""
    return {key: value for key, value in part.items() if key != name or value}


def _iso(time_us: int) -> str:
    """Format a time for people who read the log; programs use `at_us`."""
    return utc(time_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parse(text: str | bytes, name: str, build: Any) -> Any:
    fix = "use the version of cdc-pipeline that wrote it, or a newer one"
    try:
        raw = json.loads(text)
        if raw["format"] not in (FORMAT, FORMAT_WITH_ERASURES, FORMAT_WITH_SUMS):
            raise LakeError(
                f"{name} has format {raw['format']}, this version reads {FORMAT} to "
                f"{FORMAT_WITH_SUMS}",
                fix=fix,
            )
        kind = Entry if build is _entry else LogState
        known = {"format", "at", *_stored(kind)}
        # Ignored, they would change the state; constructors check the fields of parts.
        if unknown := sorted(raw.keys() - known):
            raise LakeError(f"{name} has fields unknown to this version: {unknown}", fix=fix)
        return build(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise LakeError(
            f"{name} is not a readable part of the capture log ({error!r})", fix=fix
        ) from error


def _entry(raw: Mapping[str, Any]) -> Entry:
    return Entry(
        n=raw["n"],
        nonce=raw["nonce"],
        owner=raw["owner"],
        at_us=raw["at_us"],
        stream=StreamRef(**raw["stream"]) if raw.get("stream") else None,
        shards=tuple(_each(ShardState, raw)),
        forgotten=tuple(raw.get("forgotten", ())),
        objects=tuple(_objects(raw)),
        quarantined=tuple(QuarantinedObject(**q) for q in raw.get("quarantined", ())),
        discovered_us=raw.get("discovered_us"),
        resumed_us=raw.get("resumed_us"),
        baseline=Baseline(**raw["baseline"]) if raw.get("baseline") else None,
        gap=_gap(raw["gap"]) if raw.get("gap") else None,
        heal=_heal(raw["heal"]) if raw.get("heal") else None,
        completes=tuple(raw.get("completes", ())),
        replaced=tuple(raw.get("replaced", ())),
        removed=tuple(raw.get("removed", ())),
        lost=tuple(raw.get("lost", ())),
        erasure=_erasure(raw["erasure"]) if raw.get("erasure") else None,
        cut=Cutover(**raw["cut"]) if raw.get("cut") else None,
        replicated_us=raw.get("replicated_us"),
        files=tuple(_files(raw)),
        files_from=raw.get("files_from"),
        late=LateChanges(**raw["late"]) if raw.get("late") else None,
        clock_offset_us=raw.get("clock_offset_us"),
    )


def _state(raw: Mapping[str, Any]) -> LogState:
    return LogState(
        n=raw["n"],
        at_us=raw["at_us"],
        stream=StreamRef(**raw["stream"]) if raw["stream"] else None,
        shards={s.shard_id: s for s in _each(ShardState, raw)},
        objects={o.key: o for o in _objects(raw)},
        lost={o.key: o for o in _objects(raw, "lost")},
        quarantined={q["key"]: QuarantinedObject(**q) for q in raw["quarantined"]},
        baselines={b["generation"]: Baseline(**b) for b in raw["baselines"]},
        gaps={g["entry"]: _gap(g) for g in raw["gaps"]},
        heals={h["gap"]: _heal(h) for h in raw.get("heals", ())},
        incomplete=raw["incomplete"],
        discovered_us=raw["discovered_us"],
        resumed_us=raw.get("resumed_us", 0),
        # Older summaries do not contain it.
        began_us=raw.get("began_us") or (raw["stream"] or {}).get("recorded_us", 0),
        replaced=raw.get("replaced", {}),
        erasures={e["key_hash"]: _erasure(e) for e in raw.get("erasures", ())},
        files={file.uri: file for file in _files(raw)},
        files_from=raw.get("files_from", ""),
        legacy_us=raw.get("legacy_us", 0),
        last_owner=raw["last_owner"],
        cut=Cutover(**raw["cut"]) if raw.get("cut") else None,
        replicated_us=raw.get("replicated_us", 0),
        late=LateChanges(**raw["late"]) if raw.get("late") else NOTHING_LATE,
        late_at_us=raw.get("late_at_us", 0),
        clock_offset_us=raw.get("clock_offset_us"),
        summed_to=raw.get("summed_to", 0),
        quarantined_sums=raw.get("quarantined_sums", {}),
    )


def _each(kind: type[ShardState], raw: Mapping[str, Any]) -> Iterable[ShardState]:
    return (kind(**part) for part in raw.get("shards", ()))


def _gap(raw: Mapping[str, Any]) -> Gap:
    return Gap(**{**raw, "shards": tuple(raw["shards"])})


def _erasure(raw: Mapping[str, Any]) -> Erasure:
    removed = (RemovedRows(**part) for part in raw["removed"])
    return Erasure(**{**raw, "removed": tuple(removed)})


def _heal(raw: Mapping[str, Any]) -> Heal:
    windows = (HealWindow(**{**w, "files": tuple(w["files"])}) for w in raw["windows"])
    return Heal(**{**raw, "windows": tuple(windows), "also": tuple(raw.get("also", ()))})


def _files(raw: Mapping[str, Any]) -> Iterable[SourceFile]:
    return (SourceFile(**{**part, "days": tuple(part["days"])}) for part in raw.get("files", ()))


def _objects(raw: Mapping[str, Any], name: str = "objects") -> Iterable[LandedObject]:
    for part in raw.get(name, ()):
        yield LandedObject(**{**part, "shards": tuple(part["shards"])})
