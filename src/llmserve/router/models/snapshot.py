"""The book of models as the next router needs it. It is JSON with a version. Who runs the processes reports
what there is, so that is not part of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmserve.router.models.registration import ModelRegistration

_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelBookSnapshot:
    """last_number: of all registrations that ever were. declared: the entries of the manifest as applied
    last, by name."""

    last_number: int = 0
    registrations: Sequence[ModelRegistration] = ()
    declared: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        content = {
            "version": _VERSION,
            "last_number": self.last_number,
            "registrations": [one.saved() for one in self.registrations],
            "declared": dict(self.declared),
        }
        return json.dumps(content, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelBookSnapshot":
        """Errors: ValueError when it has another version, or is no snapshot."""
        try:
            content = dict(json.loads(text))
            if content.get("version") != _VERSION:
                raise ValueError(
                    f"it has version {content.get('version')!r}, and this release knows {_VERSION}"
                )
            return cls(
                int(content["last_number"]),
                tuple(map(ModelRegistration.restored, content["registrations"])),
                {str(name): str(entry) for name, entry in content["declared"].items()},
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it is no snapshot of models: {error!r}") from error
