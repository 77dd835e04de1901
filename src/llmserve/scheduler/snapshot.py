"""State that a new leader cannot learn from anyone: whose turn it is, and what each tenant has used.

Apiservers report what waits and what runs, so that is not part of it. Times are seconds from the moment of
the snapshot, because the clocks of two routers are unrelated.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmserve.core.ids import TenantId


@dataclass(frozen=True, slots=True)
class SavedFormat:
    """How a router saves such state: as JSON with a version. kind: what is saved, for messages.
    version: that of this release, which reads no other one."""

    kind: str
    version: int

    def write(self, fields: Mapping[str, Any]) -> str:
        content = {"version": self.version, **fields}
        return json.dumps(content, separators=(",", ":"), sort_keys=True)

    @contextmanager
    def read(self, text: str) -> Iterator[dict[str, Any]]:
        """Yields the fields that were written. Errors: ValueError for another version, and for what is no
        such state, also when only the caller finds that out: by TypeError, KeyError or AttributeError."""
        try:
            fields = dict(json.loads(text))
            version = fields.pop("version", None)
            if version != self.version:
                raise ValueError(f"it has version {version!r}, and this release knows {self.version}")
            yield fields
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it is no snapshot of {self.kind}: {error!r}") from error


_FORMAT = SavedFormat("a scheduler", 1)


@dataclass(frozen=True, slots=True)
class FairnessSnapshot:
    """In virtual tokens, as in fairness.py. tags: tags of tenants that wait or run."""

    virtual_time: float = 0.0
    highest: float = 0.0
    tags: Mapping[TenantId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """output_tokens: mean answer of each tenant."""

    fairness: FairnessSnapshot = field(default_factory=FairnessSnapshot)
    output_tokens: Mapping[TenantId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SchedulerSnapshot:
    """fairness, output_tokens: of the only model. models: of each of several, by name.
    spent_seconds: seconds that each tenant has spent ahead of each of its rates, by the budget's name
    (negative: less than it may save up); tenants that have saved up all are left out. kv_io_seconds: the
    same of the KV I/O budget."""

    fairness: FairnessSnapshot = field(default_factory=FairnessSnapshot)
    spent_seconds: Mapping[str, Mapping[TenantId, float]] = field(default_factory=dict)
    kv_io_seconds: float | None = None
    output_tokens: Mapping[TenantId, float] = field(default_factory=dict)
    models: Mapping[str, ModelSnapshot] = field(default_factory=dict)

    @classmethod
    def of_models(
        cls,
        models: Mapping[str, ModelSnapshot],
        spent_seconds: Mapping[str, Mapping[TenantId, float]],
        kv_io_seconds: float | None,
    ) -> "SchedulerSnapshot":
        """A snapshot of one model does not name it, so that earlier releases read it."""
        if len(models) > 1:
            return cls(spent_seconds=spent_seconds, kv_io_seconds=kv_io_seconds, models=models)
        only = next(iter(models.values()), ModelSnapshot())
        return cls(only.fairness, spent_seconds, kv_io_seconds, only.output_tokens)

    def of_model(self, name: str) -> ModelSnapshot:
        return self.models.get(name, ModelSnapshot(self.fairness, self.output_tokens))

    def aged(self, seconds: float) -> "SchedulerSnapshot":
        """The same snapshot, that many seconds later."""
        spent = {
            name: {tenant: ahead - seconds for tenant, ahead in tenants.items()}
            for name, tenants in self.spent_seconds.items()
        }
        kv_io = None if self.kv_io_seconds is None else self.kv_io_seconds - seconds
        return replace(self, spent_seconds=spent, kv_io_seconds=kv_io)

    def to_json(self) -> str:
        return _FORMAT.write(
            {name: value for name, value in asdict(self).items() if name != "models" or value}
        )

    @classmethod
    def from_json(cls, text: str) -> "SchedulerSnapshot":
        """Errors: ValueError when it has another version, or is no snapshot."""
        with _FORMAT.read(text) as fields:
            models = {name: _read_model(one) for name, one in fields.pop("models", {}).items()}
            return cls(**{**fields, "fairness": FairnessSnapshot(**fields["fairness"])}, models=models)


def _read_model(fields: Mapping[str, Any]) -> ModelSnapshot:
    return ModelSnapshot(FairnessSnapshot(**fields["fairness"]), fields["output_tokens"])
