"""What nobody tells a new router: whose turn it is, and what each tenant has used. As JSON, with a version.

What waits and what runs is not in it: apiservers tell that. Times are seconds from the moment of the
snapshot, as the clocks of two routers have nothing in common.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from llmserve.core.ids import TenantId

_VERSION = 1


@dataclass(frozen=True, slots=True)
class FairnessSnapshot:
    """In virtual tokens, as in fairness.py. tags: of tenants that wait or run."""

    virtual_time: float = 0.0
    highest: float = 0.0
    tags: Mapping[TenantId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SchedulerSnapshot:
    """spent_seconds: of each tenant's rate, by the budget's name, ahead of now (negative: less than what
    may be saved up); tenants that have saved up all they may are not in it. kv_io_seconds: the same of
    the KV I/O budget. output_tokens: what an answer of the tenant has on average."""

    fairness: FairnessSnapshot = field(default_factory=FairnessSnapshot)
    spent_seconds: Mapping[str, Mapping[TenantId, float]] = field(default_factory=dict)
    kv_io_seconds: float | None = None
    output_tokens: Mapping[TenantId, float] = field(default_factory=dict)

    def aged(self, seconds: float) -> "SchedulerSnapshot":
        """The same, that much later."""
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
        """Errors: ValueError when it is of another version, or none of ours."""
        try:
            fields = dict(json.loads(text))
            version = fields.pop("version", None)
            if version != _VERSION:
                raise ValueError(f"it has version {version!r}, and this release knows {_VERSION}")
            return cls(**{**fields, "fairness": FairnessSnapshot(**fields["fairness"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"it is no snapshot of a scheduler: {error}") from error
