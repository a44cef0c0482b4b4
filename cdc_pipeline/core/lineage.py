"""Shard lineage of a stream: depths, and which shards may be read now."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """One shard as DescribeStream lists it; `ending` is None while the shard is open."""

    shard_id: str
    parent_id: str | None
    starting: str | None
    ending: str | None

    @property
    def is_open(self) -> bool:
        """An open shard may still get records (no EndingSequenceNumber)."""
        return self.ending is None


ROOT_DEPTH = 1000
STEP = 16
"""Listings can be late: between a parent's depth and its child's, and above the first roots, there
is room for shards that show later."""


def depths(listed: Iterable[Shard], known: Mapping[str, int]) -> dict[str, int]:
    """Lineage depth of every listed shard; `known` holds depths that the log has fixed already.

    A child is a step deeper than its parent. A shard whose parent is neither listed nor known is a
    root: its parent has expired. A root that appears later than others goes deeper than all of
    them, which is safe: its items' earlier changes, if there are any, are in shards that the log
    knew before. A parent that appears later than its child goes above it.
    """
    by_id = {shard.shard_id: shard for shard in listed}
    fixed = dict(known)
    for shard in by_id.values():
        _above_known_children(shard, by_id, known, fixed)
    root = max(known.values(), default=ROOT_DEPTH - STEP)
    result: dict[str, int] = {}
    for start in by_id:
        chain: list[str] = []
        at: str | None = start
        while at in by_id and at not in result and at not in fixed and at not in chain:
            chain.append(at)
            at = by_id[at].parent_id
        depth = fixed.get(at, result.get(at, root)) if at is not None else root
        for shard_id in reversed(chain):
            depth += STEP
            result[shard_id] = depth
        if start in fixed:
            result[start] = fixed[start]
    return result


def _above_known_children(
    shard: Shard, by_id: Mapping[str, Shard], known: Mapping[str, int], fixed: dict[str, int]
) -> None:
    """Give unknown ancestors of a known shard the depths above it and above its siblings."""
    seen = {shard.shard_id}
    while shard.shard_id in fixed:
        parent = by_id.get(shard.parent_id or "")
        if parent is None or parent.shard_id in seen:
            return
        if parent.shard_id not in known:
            above = max(0, fixed[shard.shard_id] - 1)
            fixed[parent.shard_id] = min(above, fixed.get(parent.shard_id, above))
        seen.add(parent.shard_id)
        shard = parent


def readable(
    listed: Iterable[Shard], is_finished: Callable[[str], bool], is_known: Callable[[str], bool]
) -> list[Shard]:
    """Shards not finished whose parent is finished or gone: per item, parents come first."""
    shards = list(listed)
    ids = {shard.shard_id for shard in shards}

    def parent_is_done(shard: Shard) -> bool:
        parent = shard.parent_id
        if parent is None or is_finished(parent):
            return True
        return parent not in ids and not is_known(parent)

    return [s for s in shards if not is_finished(s.shard_id) and parent_is_done(s)]
