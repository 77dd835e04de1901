"""What the store has said about one request, and what of that is still to be used. Pure."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmserve.engines.store.link import StoreQuery
from llmserve.engines.store.links import LocatedBlock, PromptAnswer, StoreLease


@dataclass(slots=True)
class StoreRequest:
    """given_tokens: of its prompt, another worker hands over so many. most_loads: blocks in front of its last
    token, which is computed. about_windows: open questions that are sent later, with the number of their
    group. loads, stores: by hash in the store; reserved or leased, and not yet being copied."""

    tenant: str
    given_tokens: int
    most_loads: int = sys.maxsize
    asked_tokens: int = 0  # whether blocks that end before or here are to be stored is known, or will be
    open_questions: int = 0
    about_windows: list[tuple[int, StoreQuery]] = field(default_factory=list)
    may_load: bool = True  # it has not been asked what there is to load
    leases: list[StoreLease] = field(default_factory=list)  # of the loads
    usable_until: float = float("inf")
    loads: dict[bytes, LocatedBlock] = field(default_factory=dict)
    stores: dict[bytes, LocatedBlock] = field(default_factory=dict)

    def note(self, answer: PromptAnswer) -> None:
        """Keeps an answer to one of the open questions."""
        self._drop_gone(answer.arenas)
        self.open_questions -= 1
        self.leases += answer.leases
        self.usable_until = min(answer.usable_until, self.usable_until)
        hashes = answer.ask.block_hashes
        self.loads |= {hashes[at]: block for at, block in answer.loads.items()}
        self.stores |= {hashes[at]: block for at, block in answer.stores.items()}

    def take_window_questions(
        self, answer: PromptAnswer, window_blocks: Callable[[int], int]
    ) -> list[StoreQuery]:
        """Returns the questions about groups with a window that an answer decides. answer: of a group that
        sees all. Such groups are stored together. window_blocks: number of blocks that a group sees. Of a
        window, vLLM stores the blocks in front of the prompt's last token (prefix_cache_retention_interval
        0)."""
        waiting, self.about_windows = self.about_windows, []
        end = min(max(answer.loads, default=-1) + 1, self.most_loads)
        return [
            replace(query, have_blocks=max(query.have_blocks, end - window_blocks(group)))
            for group, query in waiting
        ]

    def take_loads(self) -> tuple[Sequence[StoreLease], Mapping[bytes, LocatedBlock]]:
        """Returns the blocks to load and their leases, which whoever takes them releases."""
        taken = self.leases, self.loads
        self.leases, self.loads = [], {}
        return taken

    def take_stores(self, names: Iterable[bytes]) -> list[LocatedBlock]:
        """Returns the slots reserved for these blocks."""
        return [self.stores.pop(name) for name in names]

    def ask_again(self) -> None:
        """What the store said holds no more. The caller has taken the loads."""
        self.stores = {}
        self.may_load, self.asked_tokens = True, 0
        self.usable_until = float("inf")

    def _drop_gone(self, arenas: Mapping[str, str]) -> None:
        """Drops blocks in the memory of a process that is gone: its KV manager has another now, or is
        away."""

        def is_there(block: LocatedBlock) -> bool:
            return arenas.get(block.manager, block.arena) == block.arena

        self.loads = {name: block for name, block in self.loads.items() if is_there(block)}
        self.stores = {name: block for name, block in self.stores.items() if is_there(block)}
        alive = {block.manager for block in self.loads.values()}
        self.leases = [lease for lease in self.leases if lease.manager in alive]
