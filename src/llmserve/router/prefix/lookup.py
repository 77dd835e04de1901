"""Uses the prefix index for a request: while it waits, when it is placed, and when it ends. Pure."""

from dataclasses import replace

from llmserve.core.clock import Clock
from llmserve.core.ids import TenantId, WorkerId
from llmserve.core.request import Outcome, WorkerRole
from llmserve.router.events import CachedTokens, Prefetch
from llmserve.router.placement.planner import Plan
from llmserve.router.prefix.hash_check import HashConsistency
from llmserve.router.prefix.hot import HotPrefixes
from llmserve.router.prefix.index import NO_PROMPT, PrefixIndex
from llmserve.router.sessions import Prefilled, RequestEntry
from llmserve.router.workers.membership import ClusterMembership

# What a request found when it came is looked for again when its turn comes later than this.
STALE_AFTER_SECONDS = 1.0
_PREFILLS = (WorkerRole.PREFILL, WorkerRole.AGGREGATED)


class PrefixLookup:
    """prefetches: blocks of waiting requests are loaded into DRAM (`kv_cache.prefetch_on_prefix`).
    prompt_tokens, cached_tokens: totals of the requests that have ended; cached ones were not computed."""

    def __init__(
        self, clock: Clock, index: PrefixIndex, membership: ClusterMembership, prefetches: bool
    ) -> None:
        self.index, self.hash_check, self.prefetches = index, HashConsistency(clock, index), prefetches
        self._clock, self._membership = clock, membership
        self.hot = HotPrefixes(clock)
        self.prompt_tokens = self.cached_tokens = 0

    def look_up(self, entry: RequestEntry) -> None:
        """Refreshes the prefix match of a waiting request if it is older than STALE_AFTER_SECONDS."""
        now = self._clock.now()
        if entry.prompt.block_hashes and now - entry.matched_at > STALE_AFTER_SECONDS:
            entry.matched_at = now
            match = self.index.match(entry.prompt)
            if match is not entry.placement.match:
                entry.placement = replace(entry.placement, match=match)

    def best_cached_tokens(self, entry: RequestEntry) -> int:
        """Prompt tokens that the best worker need not compute."""
        return entry.placement.match.best_cached_tokens(entry.placement.prompt_tokens)

    def prefetch(self, entry: RequestEntry, tenant: TenantId, wait_seconds: float) -> list[Prefetch]:
        """Asks for the blocks of a waiting request; empty when all of its stored blocks are in DRAM."""
        hashes, worker_id = entry.prompt.block_hashes, self._could_run(entry)
        if worker_id is None:
            return []
        stretches = self.index.below_dram(hashes)
        adapter = entry.placement.adapter
        return [Prefetch(worker_id, tenant, hashes, stretches, wait_seconds, adapter)] if stretches else []

    def placed(self, entry: RequestEntry, plan: Plan, tenant: TenantId) -> int:
        """Returns the prompt tokens that the worker is expected to have cached, and drops what the request
        kept while it waited."""
        spec, placement, hashes = (
            (plan.prefill or plan.decode).spec,
            entry.placement,
            entry.prompt.block_hashes,
        )
        predicted = placement.match.cached_tokens(spec.worker_id, placement.prompt_tokens)
        first_block = hashes[0] if hashes else None
        if predicted:
            blocks = predicted // placement.match.block_tokens
            self.hot.used(hashes[blocks - 1], tenant, blocks, predicted)
        entry.prefilled = Prefilled(spec.worker_id, spec.epoch, predicted, first_block)
        entry.prompt = NO_PROMPT
        return predicted

    def ended(self, entry: RequestEntry, outcome: Outcome, actual: int | None) -> CachedTokens | None:
        """actual: prompt tokens that the engine found cached; None: it did not report them."""
        ran = entry.prefilled
        if ran is None:
            return None
        if outcome is Outcome.COMPLETED and ran.first_block and self.index.followed:
            self.hash_check.ran(ran.worker_id, ran.epoch, ran.first_block)
        if actual is None:
            return None
        self.prompt_tokens += entry.placement.prompt_tokens
        self.cached_tokens += actual
        return CachedTokens(entry.placement.prompt_tokens, ran.predicted_cached_tokens, actual)

    def _could_run(self, entry: RequestEntry) -> WorkerId | None:
        """A worker whose blocks have the size of the hashed ones."""
        members = (m for role in _PREFILLS for m in self._membership.registered(entry.placement.model, role))
        size = entry.prompt.block_tokens
        return next((m.spec.worker_id for m in members if m.spec.kv_shape.block_size_tokens == size), None)
