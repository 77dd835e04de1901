"""The book as the next router needs it: which names there are, and what was decided about them. Workers
report what they hold, and apiservers what runs, so that is not part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmserve.core.adapters import AdapterState, AdapterTier
from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.scheduler.snapshot import SavedFormat

_FORMAT = SavedFormat("adapters", 1)


@dataclass(frozen=True, slots=True)
class AdapterSnapshot:
    """last_number: of all registrations that ever were. declared: the manifest's adapters as applied last,
    by model. leftovers: versions that are gone, and of which KV managers may still have blocks."""

    last_number: int = 0
    registrations: Sequence[Registration] = ()
    declared: Mapping[str, Sequence[AdapterWish]] = field(default_factory=dict)
    leftovers: Sequence[AdapterDigest] = ()

    def to_json(self) -> str:
        declared = {model: [asdict(one) for one in wishes] for model, wishes in self.declared.items()}
        return _FORMAT.write(
            {
                "last_number": self.last_number,
                "registrations": [one.saved() for one in self.registrations],
                "declared": declared,
                "leftovers": list(self.leftovers),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "AdapterSnapshot":
        """Errors: ValueError when it has another version, or is no snapshot."""
        with _FORMAT.read(text) as fields:
            return cls(
                int(fields["last_number"]),
                tuple(map(_registration, fields["registrations"])),
                {model: tuple(map(_wish, wishes)) for model, wishes in fields["declared"].items()},
                tuple(map(AdapterDigest, fields["leftovers"])),
            )


def _wish(saved: Mapping[str, Any]) -> AdapterWish:
    tier, implicit = AdapterTier(saved["tier"]), saved.get("implicit", False)  # added later
    return AdapterWish(saved["name"], saved["source"], tier, saved["pinned"], implicit)


def _registration(saved: Mapping[str, Any]) -> Registration:
    return Registration(
        int(saved["number"]),
        saved["model"],
        _wish(saved),
        AdapterState(saved["state"]),
        AdapterDigest(saved["digest"]),
        int(saved["rank"]),
        int(saved["size_bytes"]),
        saved["error"],
        saved["message"],
        released=saved["released"],
    )
