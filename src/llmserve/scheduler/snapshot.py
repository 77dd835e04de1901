"""State that a new leader cannot learn from anyone: whose turn it is, and what each tenant has used. JSON
with a version.

Apiservers report what waits and what runs, so that is not part of it. Times are seconds from the moment of
the snapshot, because the clocks of two routers are unrelated.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from llmserve.core.ids import TenantId

_VERSION = 1


@dataclass(frozen=True, slots=True)
class FairnessSnapshot:
    """In virtual tokens, as in fairness.py. tags: tags of tenants that wait or run."""

    virtual_time: float = 0.0
    highest: float = 0.0
    tags: Mapping[TenantId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SchedulerSnapshot:
    """spent_seconds: seconds that each tenant has spent ahead of each of its rates, by the budget's name
    (negative: less than it may save up); tenants that have saved up all are left out. kv_io_seconds: the
    same of the KV I/O budget. output_tokens: mean answer of each tenant."""

    fairness: FairnessSnapshot = field(default_factory=FairnessSnapshot)
    spent_seconds: Mapping[str, Mapping[TenantId, float]] = field(default_factory=dict)
    kv_io_seconds: float | None = None
    output_tokens: Mapping[TenantId, float] = field(default_factory=dict)

    def aged(self, seconds: float) -> "SchedulerSnapshot":
        """The same snapshot, that many seconds later."""
        spent = {
            name: {tenant: ahead - seconds for tenant, ahead in tenants.items()}
            for name, tenants in self.spent_seconds.items()
        }
        kv_io = None if self.kv_io_seconds is None else self.kv_io_seconds - seconds
        return replace(self, spent_seconds=spent, kv_io_seconds=kv_io)

    def to_json(self) -> str:
        return json.dumps({"version": _VERSION, **asdict(self)}, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "SchedulerSnapshot":
        """Errors: ValueError when it has another version, or is no snapshot."""
        try:
            fields = dict(json.loads(text))
            version = fields.pop("version", None)
            if version != _VERSION:
                raise ValueError(f"it has version {version!r}, and this release knows {_VERSION}")
            return cls(**{**fields, "fairness": FairnessSnapshot(**fields["fairness"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"it is no snapshot of a scheduler: {error}") from error
