"""What goes wrong with an answer, when it does, and how often it did.

    sim.faults.script("GetRecords", throttled(), None, cut())   # this call, not the next, the third
    sim.faults.always("GetRecords", internal_error(), shard=shard_id)
    sim.faults.chance("GetRecords", 0.2, throttled(), reset())  # seeded
    assert sim.faults.count("throttled") == 1

A fault that makes no sense for an answer (a cut inside a UTF-8 character of ASCII text, an empty
page at the end of a closed shard) leaves it alone, is not counted, and is tried on the next one.
"""

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import msgspec

DYNAMODB = "com.amazonaws.dynamodb.v20120810#"
CORAL = "com.amazon.coral."


@dataclass(frozen=True)
class Reply:
    """An answer as it goes over the wire.

    `keep`: how many bytes of the body are sent, None for all; `honest_length`: Content-Length is
    that of what is sent, not of the body. `reset`: where the connection breaks instead.
    """

    status: int
    body: bytes
    keep: int | None = None
    honest_length: bool = True
    reset: Literal["before headers", "after headers"] | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Call:
    """A request to be answered. `ask` answers it as the service would, with `changes` to it."""

    operation: str
    request: dict[str, Any]
    shard_id: str | None
    service: Callable[[dict[str, Any]], Reply]

    def ask(self, **changes: Any) -> Reply:
        return self.service({**self.request, **changes})


@dataclass(frozen=True)
class Fault:
    """`answer` gives the faulty reply, None where the fault makes no sense."""

    name: str
    answer: Callable[[Call], Reply | None] = field(repr=False)


# ---------------------------------------------------------------------------------------- errors


def error_reply(status: int, kind: str, message: str) -> Reply:
    return Reply(status, msgspec.json.encode({"__type": kind, "message": message}))


def error(kind: str, *, status: int = 400, message: str = "simulated") -> Fault:
    """Any error; `kind` without a namespace is one of DynamoDB's."""
    full = kind if "#" in kind else DYNAMODB + kind
    return Fault(full.rpartition("#")[2], lambda _: error_reply(status, full, message))


def throttled() -> Fault:
    kind = f"{CORAL}availability#ThrottlingException"
    return replace(error(kind, message="Rate exceeded"), name="throttled")


def limit_exceeded() -> Fault:
    return replace(error("LimitExceededException"), name="limit exceeded")


def throughput_exceeded() -> Fault:
    return replace(error("ProvisionedThroughputExceededException"), name="throughput exceeded")


def internal_error() -> Fault:
    return replace(error("InternalServerError", status=500), name="internal error")


def unavailable() -> Fault:
    return replace(error("ServiceUnavailable", status=503), name="unavailable")


def cut_error(kind: str = "LimitExceededException", status: int = 400) -> Fault:
    """An error whose body ends in the middle of its `__type`."""
    whole = error_reply(status, DYNAMODB + kind, "simulated")
    return Fault("cut error", lambda _: replace(whole, keep=len(DYNAMODB) + 15))


# --------------------------------------------------------------------------------------- the wire


def reset(*, after_headers: bool = False) -> Fault:
    """The connection is reset, before the answer or between its headers and its body."""
    where: Literal["before headers", "after headers"] = (
        "after headers" if after_headers else "before headers"
    )
    return Fault(f"reset {where}", lambda call: replace(call.ask(), reset=where))


def slow(seconds: float) -> Fault:
    """The answer comes late, by the real clock."""

    def answer(call: Call) -> Reply:
        time.sleep(seconds)
        return call.ask()

    return Fault("slow", answer)


def cut(keep: float = 0.5, *, honest_length: bool = False) -> Fault:
    """Only the first part of the body comes; Content-Length is the whole one's or, honest, its."""

    def answer(call: Call) -> Reply:
        reply = call.ask()
        return replace(reply, keep=int(len(reply.body) * keep), honest_length=honest_length)

    return Fault("cut, honest length" if honest_length else "cut", answer)


def cut_in_character() -> Fault:
    """The body ends inside its last character of several bytes; Content-Length fits what comes."""

    def answer(call: Call) -> Reply | None:
        reply = call.ask()
        last = next((i for i in reversed(range(len(reply.body))) if reply.body[i] >= 0xC0), None)
        return None if last is None else replace(reply, keep=last + 1)

    return Fault("cut in character", answer)


def empty_body() -> Fault:
    return Fault("empty body", lambda call: replace(call.ask(), keep=0))


# ------------------------------------------------------------------------- answers that are wrong


def empty_page() -> Fault:
    """GetRecords gives no records and an iterator that stands where the old one stood."""

    def answer(call: Call) -> Reply | None:
        reply = call.ask(Limit=0)
        return reply if reply.status != 200 or b'"NextShardIterator"' in reply.body else None

    return Fault("empty page", answer)


def _shards_in(listing: dict[str, Any]) -> dict[str, Any]:
    """The part of DescribeStream's or ListShards' answer that has the Shards."""
    return listing.get("StreamDescription", listing)


def _parents(shard: dict[str, Any]) -> set[str]:
    """Shards of Kinesis have two parents where shards were merged."""
    return {shard[name] for name in ("ParentShardId", "AdjacentParentShardId") if name in shard}


def _listing(name: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Fault:
    def answer(call: Call) -> Reply | None:
        reply = call.ask()
        if reply.status != 200:
            return None
        listing = msgspec.json.decode(reply.body)
        before = msgspec.json.encode(listing)
        description = _shards_in(listing)
        description["Shards"] = change(description["Shards"])
        after = msgspec.json.encode(listing)
        return None if after == before else replace(reply, body=after)

    return Fault(name, answer)


def parent_looks_open() -> Fault:
    """Shards whose children are in the listing have no EndingSequenceNumber yet."""

    def change(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        parents = set().union(*map(_parents, shards))
        for shard in shards:
            if shard["ShardId"] in parents:
                shard["SequenceNumberRange"].pop("EndingSequenceNumber", None)
        return shards

    return _listing("parent looks open", change)


def children_missing() -> Fault:
    """Shards whose parent is in the listing are not; scripted n times, for n calls.

    A listing of a shard's children is empty.
    """

    def change(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        listed = {shard["ShardId"] for shard in shards}
        return [shard for shard in shards if listed.isdisjoint(_parents(shard))]

    whole = _listing("children missing", change)
    filtered = _listing("children missing", lambda shards: [])
    return Fault(
        whole.name, lambda call: (filtered if "ShardFilter" in call.request else whole).answer(call)
    )


def lagging() -> Fault:
    """The listing as it was before its youngest shards: these missing, their parents open."""

    def change(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        parents = set().union(*map(_parents, shards))
        young = [s for s in shards if _parents(s) and s["ShardId"] not in parents]
        left = [shard for shard in shards if shard not in young]
        for shard in left:
            if any(shard["ShardId"] in _parents(child) for child in young):
                shard["SequenceNumberRange"].pop("EndingSequenceNumber", None)
        return left

    return _listing("lagging", change)


def shard_missing(shard_id: str | None = None) -> Fault:
    """One shard, or the first of a page, is not in the listing."""

    def change(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        missing = shard_id or (shards[0]["ShardId"] if shards else None)
        return [shard for shard in shards if shard["ShardId"] != missing]

    return _listing("shard missing", change)


def only_hiding(fault: Fault, may_hide: Callable[[str], bool]) -> Fault:
    """A faulty listing in which all the shards are that may not be hidden."""

    def answer(call: Call) -> Reply | None:
        reply, true = fault.answer(call), call.ask()
        if reply is None or reply.status != 200 or true.status != 200:
            return None
        listing, whole = msgspec.json.decode(reply.body), msgspec.json.decode(true.body)
        shown = {shard["ShardId"]: shard for shard in _shards_in(listing)["Shards"]}
        description = _shards_in(whole)
        description["Shards"] = [
            shown.get(shard["ShardId"], shard)
            for shard in description["Shards"]
            if shard["ShardId"] in shown or not may_hide(shard["ShardId"])
        ]
        body = msgspec.json.encode(whole)
        return None if body == true.body else replace(true, body=body)

    return Fault(fault.name, answer)


def of_whole_listings(fault: Fault) -> Fault:
    """A faulty listing, but whoever asks for the children of one shard gets them."""

    def answer(call: Call) -> Reply | None:
        return None if "ShardFilter" in call.request else fault.answer(call)

    return Fault(fault.name, answer)


def ignores_filter() -> Fault:
    """A server that overlooks ShardFilter and lists all shards."""

    def answer(call: Call) -> Reply | None:
        if "ShardFilter" not in call.request:
            return None
        rest = {name: part for name, part in call.request.items() if name != "ShardFilter"}
        return call.service(rest)

    return Fault("ignores ShardFilter", answer)


def refuses_filter() -> Fault:
    """A server that does not know ShardFilter."""
    refused = error(f"{CORAL}validate#ValidationException", message="unknown parameter")

    def answer(call: Call) -> Reply | None:
        return refused.answer(call) if "ShardFilter" in call.request else None

    return Fault("refuses ShardFilter", answer)


def meanwhile(action: Callable[[], object]) -> Fault:
    """No fault: something happens just before the call is answered."""

    def answer(call: Call) -> Reply:
        action()
        return call.ask()

    return Fault("meanwhile", answer)


# ------------------------------------------------------------------------------------------ when


class _Rule(Protocol):
    operation: str
    shard_id: str | None

    def choose(self, same_call: int) -> Fault | None:
        """The fault for this call; `same_call`: how often the identical call has failed so far."""
        ...

    def give_back(self, fault: Fault) -> None:
        """It made no sense."""
        ...


@dataclass
class _Script:
    operation: str
    shard_id: str | None
    left: deque[Fault | None]

    def choose(self, same_call: int) -> Fault | None:
        return self.left.popleft() if self.left else None

    def give_back(self, fault: Fault) -> None:
        self.left.appendleft(fault)


@dataclass
class _Always:
    operation: str
    shard_id: str | None
    fault: Fault

    def choose(self, same_call: int) -> Fault | None:
        return self.fault

    def give_back(self, fault: Fault) -> None:
        pass


@dataclass
class _Chance:
    operation: str
    shard_id: str | None
    rate: float
    faults: tuple[Fault, ...]
    in_a_row: int
    random: random.Random

    def choose(self, same_call: int) -> Fault | None:
        if same_call >= self.in_a_row or self.random.random() >= self.rate:
            return None
        return self.random.choice(self.faults)

    def give_back(self, fault: Fault) -> None:
        pass


class Faults:
    """The rules by which answers go wrong, in the order they were made, and what they did."""

    def __init__(self, seed: int = 0) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._rules: list[_Rule] = []
        self._random = random.Random(seed)
        self._failed: Counter[tuple[str, bytes]] = Counter()
        self._lock = threading.Lock()

    def script(self, operation: str, *faults: Fault | None, shard: str | None = None) -> None:
        """The next calls of an operation go wrong in this order; None: that one goes well."""
        self._add(_Script(operation, shard, deque(faults)))

    def always(self, operation: str, fault: Fault, *, shard: str | None = None) -> None:
        """Every call goes wrong until `clear`."""
        self._add(_Always(operation, shard, fault))

    def chance(
        self,
        operation: str,
        rate: float,
        *faults: Fault,
        in_a_row: int = 2,
        shard: str | None = None,
    ) -> None:
        """A call goes wrong with a probability; the same call at most `in_a_row` times running."""
        self._add(_Chance(operation, shard, rate, faults, in_a_row, self._random))

    def clear(self) -> None:
        """No more faults; the counts stay."""
        with self._lock:
            self._rules = []

    def count(self, name: str, operation: str | None = None) -> int:
        """How often a fault of this name has happened."""
        with self._lock:
            found = self.counts.items()
            return sum(n for (on, what), n in found if what == name and operation in (None, on))

    def unused(self) -> int:
        """How many scripted faults have not happened yet."""
        with self._lock:
            scripts = [rule.left for rule in self._rules if isinstance(rule, _Script)]
            return sum(1 for left in scripts for fault in left if fault is not None)

    @property
    def on(self) -> bool:
        return bool(self._rules)

    def answer(self, call: Call, body: bytes) -> Reply:
        """Answer a call, rightly or wrongly. `body` tells identical calls from others."""
        same = (call.operation, body)
        with self._lock:
            chosen = self._choose(call, self._failed[same])
        reply = None
        if chosen is not None:
            rule, fault = chosen
            reply = fault.answer(call)
            with self._lock:
                if reply is None:
                    rule.give_back(fault)
                else:
                    self.counts[call.operation, fault.name] += 1
                    self._failed[same] += 1
        if reply is None:
            with self._lock:
                self._failed.pop(same, None)
            reply = call.ask()
        return reply

    def _choose(self, call: Call, same_call: int) -> tuple[_Rule, Fault] | None:
        for rule in self._rules:
            if rule.operation == call.operation and rule.shard_id in (None, call.shard_id):
                fault = rule.choose(same_call)
                if fault is not None:
                    return rule, fault
        return None

    def _add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules = [*self._rules, rule]
