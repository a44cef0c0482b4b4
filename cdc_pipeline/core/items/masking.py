"""Masking: hashes and texts in place of values that readers must not see."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdc_pipeline.core.items.attributes import plain_json, to_json

KEY_BYTES = 32
"""Least length of a masking key, in bytes: that of the hash."""

_ABOUT_THE_KEY = b"cdc_pipeline: which masking key"
"""Differs from every hashed value: canonical values are JSON objects."""


@dataclass(frozen=True)
class Masking:
    """Rules for top-level attributes, by exact name.

    `hashed`: replaced by their HMAC-SHA256 in hex, a string, equal for equal values of any table
    with the same key. `masks`: replacement texts. NULL stays NULL under both. `seen`: attributes
    with a rule applied so far.
    """

    hashed: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    masks: Mapping[str, str] = field(default_factory=dict)
    key: bytes | None = field(default=None, repr=False)
    seen: set[str] = field(default_factory=set, repr=False, compare=False)

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.hashed or self.dropped or self.masks)

    def item(self, text: str) -> str:
        """Mask an item or key in canonical typed JSON; the result is canonical, too."""
        item = json.loads(text)
        ruled = item.keys() & (self.hashed | self.dropped | self.masks.keys())
        if not ruled:
            return text
        self.seen.update(ruled)
        kept = {name: value for name, value in item.items() if name not in self.dropped}
        return to_json({n: self._value(n, v) if n in ruled else v for n, v in kept.items()})

    def plain(self, text: str) -> str:
        """Mask an item in canonical typed JSON; the result is plain JSON."""
        return plain_json(json.loads(self.item(text)))

    def _value(self, name: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if "NULL" in value:
            return value
        if name in self.masks:
            return {"S": self.masks[name]}
        return {"S": self._hmac(to_json(value).encode())}

    def _hmac(self, message: bytes) -> str:
        assert self.key is not None  # checked when the settings are read
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()

    def unmaskable(self, key: str) -> list[str]:
        """List attributes of an item's key that a rule would make ambiguous."""
        return sorted(json.loads(key).keys() & (self.dropped | self.masks.keys()))

    @property
    def fingerprint(self) -> str:
        """Hash of the rules and of the key; empty without rules."""
        if not self:
            return ""
        return f"{self._rules}.{self._hmac(_ABOUT_THE_KEY)[:32] if self.hashed else ''}"

    def made(self, fingerprint: str) -> bool:
        """Whether a table with this fingerprint was masked by these rules.

        Without the key, which readers of published tables need not have, only the rules count.
        """
        if self.hashed and self.key is None:
            return fingerprint.partition(".")[0] == self._rules
        return fingerprint == self.fingerprint

    @property
    def _rules(self) -> str:
        rules = [sorted(self.hashed), sorted(self.dropped), sorted(self.masks.items())]
        return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:32]
