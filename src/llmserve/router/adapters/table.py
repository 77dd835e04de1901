"""All registrations that are not gone, found by number, by name and by version. Pure."""

from collections.abc import Hashable, Iterator
from typing import TypeVar

from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.registration import Registration

_Key = TypeVar("_Key", bound=Hashable)


class RegistrationTable:
    """leftovers: versions that a registration had and none has now, until somebody takes them out. KV
    managers may have blocks of them."""

    def __init__(self) -> None:
        self.leftovers: set[AdapterDigest] = set()
        self._by_number: dict[int, Registration] = {}
        self._by_name: dict[tuple[str, str], dict[int, Registration]] = {}
        self._by_digest: dict[AdapterDigest, dict[int, Registration]] = {}

    def __iter__(self) -> Iterator[Registration]:
        """Yields them in the order of their numbers."""
        return iter(tuple(self._by_number.values()))

    def __len__(self) -> int:
        return len(self._by_number)

    def add(self, registration: Registration) -> None:
        """Adds one whose number is larger than all that were added before."""
        number = registration.number
        self._by_number[number] = registration
        self._by_name.setdefault(registration.key, {})[number] = registration
        self.index(registration)

    def index(self, registration: Registration) -> None:
        """Called when the digest of a registration has become known."""
        if registration.digest:
            self._by_digest.setdefault(registration.digest, {})[registration.number] = registration
            self.leftovers.discard(registration.digest)

    def remove(self, registration: Registration) -> None:
        del self._by_number[registration.number]
        _remove(self._by_name, registration.key, registration.number)
        if registration.digest:
            _remove(self._by_digest, registration.digest, registration.number)
            if registration.digest not in self._by_digest:
                self.leftovers.add(registration.digest)

    def get(self, number: int) -> Registration | None:
        return self._by_number.get(number)

    def named(self, model: str, name: str) -> list[Registration]:
        return list(self._by_name.get((model, name), {}).values())

    def of_version(self, model: str, digest: AdapterDigest) -> list[Registration]:
        """Returns the registrations of the model that have this digest."""
        return [one for one in self._by_digest.get(digest, {}).values() if one.model == model]


def _remove(groups: dict[_Key, dict[int, Registration]], key: _Key, number: int) -> None:
    del groups[key][number]
    if not groups[key]:
        del groups[key]
