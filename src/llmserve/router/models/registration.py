"""One load of a model, from its call to the end of its last process. Pure data."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from llmserve.config.wanted_models import PENDING_STATES, ModelOrder, ModelReport, ModelState, ServedName

_SAVED = (
    "number",
    "name",
    "entry",
    "declared",
    "state",
    "directory",
    "error",
    "message",
    "swap",
    "swapped",
    "pull",
)
# An earlier release refuses a book with a field that it does not know, so these are saved only when they say
# more than that.
_NEW_FIELDS: dict[str, Any] = {"pull": False}
_TAKING_STATES = (ModelState.STARTING, ModelState.READY)


@dataclass(eq=False, slots=True)
class ModelRegistration:
    """number: larger ones are later. entry: JSON, as an entry of `models` in the manifest. declared: the
    manifest has it. swap: name of the model that leaves for it; swapped: that model's entry, once it has
    begun to leave, so that it can come back. pull: it is fetched only, until a load asks for more. detail,
    directory, error, message: as in ModelReport. engines_run: as reported last. drains_since, idle_since:
    times on the clock, while it is draining; None: requests still have it. released: its processes are to
    end."""

    number: int
    name: str
    entry: str
    declared: bool = False
    swap: str = ""
    swapped: str = ""
    pull: bool = False
    state: ModelState = ModelState.REGISTERED
    detail: str = ""
    directory: str = ""
    error: str = ""
    message: str = ""
    engines_run: bool = False
    drains_since: float = 0.0
    idle_since: float | None = None
    released: bool = False

    @property
    def pending(self) -> bool:
        return self.state in PENDING_STATES

    @property
    def ordered(self) -> bool:
        """Whether whoever runs the processes is to have it."""
        return self.pending or self.state is ModelState.READY

    @property
    def wanted(self) -> bool:
        """Whether it answers, or is on its way to that."""
        return self.ordered and not self.pull

    @property
    def takes_requests(self) -> bool:
        """Whether apiservers are to take its requests."""
        return self.wanted and (self.declared or self.state in _TAKING_STATES)

    @property
    def source(self) -> str:
        return str(json.loads(self.entry)["source"])

    def begin_again(self) -> None:
        """Nothing of it is there: whoever ran it has ended."""
        self.state, self.detail, self.engines_run = ModelState.REGISTERED, "", False
        self.error, self.message = "", ""

    def hear(self, report: ModelReport) -> None:
        """Takes what is reported of a model that is pending or ready, and did not fail."""
        self.engines_run = report.state is ModelState.READY
        self.state = ModelState.STARTING if self.engines_run else report.state
        self.detail, self.directory = report.detail, report.directory or self.directory

    def become_ready(self) -> None:
        self.state, self.detail, self.swap, self.swapped = ModelState.READY, "", "", ""

    def load(self, swap: str) -> None:
        """Asks for more than a pull."""
        self.pull, self.swap = False, swap

    def drain(self, now: float) -> None:
        """One that takes no requests yet ends at once."""
        self.released = not self.takes_requests
        self.state, self.detail, self.drains_since, self.idle_since = ModelState.DRAINING, "", now, None

    def fail(self, error: str, message: str) -> None:
        self.state, self.error, self.message = ModelState.FAILED, error, message
        self.detail, self.engines_run = "", False

    def order(self, *, may_start: bool) -> ModelOrder:
        return ModelOrder(self.number, self.name, self.entry, self.declared, may_start, self.swap, self.pull)

    def served(self) -> ServedName:
        entry, is_ready = self.entry, self.state is ModelState.READY
        return ServedName(self.name, entry, self.directory, self.declared, is_ready)

    def saved(self) -> dict[str, Any]:
        """Returns what another router needs to know of it, as JSON has it."""
        all_fields = asdict(self)
        saved = {name: all_fields[name] for name in _SAVED}
        return {name: value for name, value in saved.items() if _NEW_FIELDS.get(name, ...) != value}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Self:
        """An unknown field is refused: who ignores it may do what nobody asked for, such as start the engines
        of a pull. Errors: KeyError, TypeError, ValueError for what `saved` did not return."""
        name, saved = saved.get("name"), _NEW_FIELDS | saved
        if missing := set(_SAVED) - set(saved):
            raise ValueError(f"model {name} has no {', '.join(sorted(missing))}")
        if unknown := set(saved) - set(_SAVED):
            raise ValueError(f"model {name} has {', '.join(sorted(unknown))}: a later release wrote that")
        return cls(**saved | {"state": ModelState(saved["state"]), "number": int(saved["number"])})
