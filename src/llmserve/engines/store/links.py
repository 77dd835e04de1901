"""The links of one engine to all KV managers, as one: a prompt is asked about in parts, all at once.

A KV manager that is away makes its part a miss; the others are asked and answer as ever.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Protocol

from llmserve.engines.store.link import StoreAnswer, StoreQuery
from llmserve.engines.store.parts import PartAnswer, PromptAnswer, merged, split
from llmserve.kvstore.sharding import Shard, Sharding


class OneLink(Protocol):
    """See StoreLink."""

    def prepare(self, ask: StoreQuery) -> None: ...
    def take_answers(self) -> list[StoreAnswer]: ...
    def settle(self, **changes: Any) -> None: ...
    def close(self) -> None: ...


def manager_name(index: int) -> str:
    """Blocks are placed by these names: they are the same after a restart, when addresses are others."""
    return f"kvmanager-{index}"


@dataclass(slots=True)
class _PendingPrompt:
    """A prompt whose parts have not all been answered. given: by the part's place in the prompt."""

    ask: StoreQuery
    parts: int
    given: dict[int, PartAnswer] = field(default_factory=dict)


class StoreLinks:
    """One thread, the scheduler's. `close` is idempotent."""

    def __init__(self, managers: int, make_link: Callable[[int, Callable[[], None]], OneLink]) -> None:
        """make_link: to the manager of this number; its `notify` is the second argument."""
        names = list(map(manager_name, range(managers)))
        self._news = Event()
        self._links = {name: make_link(at, self._news.set) for at, name in enumerate(names)}
        self._sharding = Sharding(dict.fromkeys(names, 1.0))
        # By the identity of the shard's question.
        self._open: dict[int, tuple[_PendingPrompt, Shard, StoreQuery]] = {}

    def prepare(self, ask: StoreQuery) -> None:
        """The answer comes with `take_answers`, when all parts are answered. ask: of at least one block that
        the device does not have."""
        parts = split(self._sharding, ask)
        asked = _PendingPrompt(ask, len(parts))
        for part, ask_of_part in parts:
            self._open[id(ask_of_part)] = (asked, part, ask_of_part)
            self._links[part.manager].prepare(ask_of_part)

    def take_answers(self, wait_seconds: float = 0.0) -> list[PromptAnswer]:
        """wait_seconds: for something to come, if nothing is there."""
        self._news.clear()
        answers = self._take()
        if not answers and wait_seconds and self._news.wait(wait_seconds):
            answers = self._take()
        return answers

    def settle(self, manager: str, **changes: Any) -> None:
        """The fields of SettleStoreRequest. What does not arrive ends by itself."""
        self._links[manager].settle(**changes)

    def close(self) -> None:
        for link in self._links.values():
            link.close()

    # -- parts

    def _take(self) -> list[PromptAnswer]:
        whole: list[_PendingPrompt] = []
        for answer in [one for link in self._links.values() for one in link.take_answers()]:
            asked, part, _ = self._open.pop(id(answer.ask))
            asked.given[part.start] = PartAnswer(part, answer)
            if len(asked.given) == asked.parts:
                whole.append(asked)
        return list(map(self._merged, whole))

    def _merged(self, asked: _PendingPrompt) -> PromptAnswer:
        answer, unused = merged(asked.ask, [asked.given[start] for start in sorted(asked.given)])
        for lease in unused:
            self.settle(lease.manager, releases=[lease.lease_id])
        return answer
