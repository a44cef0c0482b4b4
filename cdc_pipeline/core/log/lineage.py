"""Shard lineage of a stream: depths, and the shards that may be read now."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """One shard as AWS lists it; `ending` is None while the shard is open.

    `adjacent_id`: the second parent of a merged shard (Kinesis).
    """

    shard_id: str
    parent_id: str | None
    starting: str | None
    ending: str | None
    adjacent_id: str | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of its parents: none, one, or the two of a merge."""
        return tuple(p for p in (self.parent_id, self.adjacent_id) if p is not None)

    @property
    def is_open(self) -> bool:
        """Whether it may still receive records (no EndingSequenceNumber)."""
        return self.ending is None


ROOT_DEPTH = 1000
STEP = 16
"""Depth between parent and child. It leaves room, as does `ROOT_DEPTH`, for shards that appear in
later listings."""


def depths(listed: Iterable[Shard], known: Mapping[str, int]) -> dict[str, int]:
    """Compute the lineage depth of every listed shard; `known`: depths already in the log.

    A child is one step deeper than its deepest parent. A shard without listed or known parents is a
    root: its parents have expired. A root that appears later than others goes deeper than all of
    them, which is safe: earlier changes of its items, if any, are in shards already in the log. A
    parent that appears later than its child goes above it.
    """
    by_id = {shard.shard_id: shard for shard in listed}
    fixed = dict(known)
    for shard in by_id.values():
        _above_known_children(shard, by_id, known, fixed)
    root = max(known.values(), default=ROOT_DEPTH - STEP)
    result = {shard_id: fixed[shard_id] for shard_id in by_id if shard_id in fixed}
    for start in by_id:
        path = {start: None} if start not in result else {}
        while path:
            at = next(reversed(path))
            parents = by_id[at].parents
            unseen = [p for p in parents if p in by_id and p not in result and p not in path]
            if unseen:
                path[unseen[0]] = None
                continue
            above = [fixed.get(p, result.get(p, root)) for p in parents]
            result[at] = max(above, default=root) + STEP
            del path[at]
    return result


def _above_known_children(
    shard: Shard, by_id: Mapping[str, Shard], known: Mapping[str, int], fixed: dict[str, int]
) -> None:
    """Give unknown ancestors of a known shard depths above it and its siblings."""
    seen, above = {shard.shard_id}, [shard]
    while above:
        shard = above.pop()
        for parent_id in shard.parents if shard.shard_id in fixed else ():
            if parent_id not in by_id or parent_id in seen:
                continue
            if parent_id not in known:
                depth = max(0, fixed[shard.shard_id] - 1)
                fixed[parent_id] = min(depth, fixed.get(parent_id, depth))
            seen.add(parent_id)
            above.append(by_id[parent_id])


def readable(
    listed: Iterable[Shard], is_finished: Callable[[str], bool], is_known: Callable[[str], bool]
) -> list[Shard]:
    """List unfinished shards with all parents finished or gone, so that parents come first."""
    shards = list(listed)
    ids = {shard.shard_id for shard in shards}

    def is_done(parent: str) -> bool:
        return is_finished(parent) or (parent not in ids and not is_known(parent))

    return [s for s in shards if not is_finished(s.shard_id) and all(map(is_done, s.parents))]
