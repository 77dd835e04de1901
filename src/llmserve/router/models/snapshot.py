"""The book of models as the next router needs it. Who runs the processes reports what there is, so that is
not part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmserve.router.models.registration import ModelRegistration
from llmserve.scheduler.snapshot import SavedFormat

_FORMAT = SavedFormat("models", 1)


@dataclass(frozen=True, slots=True)
class ModelBookSnapshot:
    """last_number: of all registrations that ever were. declared: the entries of the manifest as applied
    last, by name."""

    last_number: int = 0
    registrations: Sequence[ModelRegistration] = ()
    declared: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return _FORMAT.write(
            {
                "last_number": self.last_number,
                "registrations": [one.saved() for one in self.registrations],
                "declared": dict(self.declared),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "ModelBookSnapshot":
        """Errors: ValueError when it has another version, or is no snapshot."""
        with _FORMAT.read(text) as fields:
            return cls(
                int(fields["last_number"]),
                tuple(map(ModelRegistration.restored, fields["registrations"])),
                {str(name): str(entry) for name, entry in fields["declared"].items()},
            )
