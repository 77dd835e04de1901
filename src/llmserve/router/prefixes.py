"""What the prefix index means for a request: while it waits, when it is placed, and when it ends. Pure."""

from dataclasses import replace

from llmserve.core.clock import Clock
from llmserve.core.ids import TenantId, WorkerId
from llmserve.core.outcome import Outcome, WorkerRole
from llmserve.router.membership import Membership
from llmserve.router.messages import CachedTokens, Prefetch
from llmserve.router.plan import Plan
from llmserve.router.prefix_index import HashedPrompt, PrefixIndex
from llmserve.router.proof import Proof
from llmserve.router.session import Prefilled, Ticket

# What a request found when it came is looked for again when its turn comes later than this.
STALE_AFTER_SECONDS = 1.0
_PREFILLS = (WorkerRole.PREFILL, WorkerRole.AGGREGATED)


class Prefixes:
    """prefetches: blocks of waiting requests are to be brought up (`kv_cache.prefetch_on_prefix`)."""

    def __init__(
        self, clock: Clock, index: PrefixIndex, membership: Membership, *, prefetches: bool = False
    ) -> None:
        self.index, self.proof, self.prefetches = index, Proof(clock, index), prefetches
        self._clock, self._membership = clock, membership

    def look_up(self, ticket: Ticket) -> None:
        """Of a waiting request: its match is at most so old afterwards."""
        now = self._clock.now()
        if ticket.prompt.block_hashes and now - ticket.matched_at > STALE_AFTER_SECONDS:
            ticket.matched_at = now
            ticket.placement = replace(ticket.placement, match=self.index.match(ticket.prompt))

    def best_cached_tokens(self, ticket: Ticket) -> int:
        """Of the prompt, where most of it is."""
        return ticket.placement.match.best_cached_tokens(ticket.placement.prompt_tokens)

    def prefetch(self, ticket: Ticket, tenant: TenantId, wait_seconds: float) -> list[Prefetch]:
        """For a request that waits; nothing when all of it that is stored is in DRAM."""
        hashes, worker_id = ticket.prompt.block_hashes, self._could_run(ticket)
        stretches = self.index.below_dram(hashes) if self.prefetches and worker_id else []
        if not stretches or worker_id is None:
            return []
        return [Prefetch(worker_id, tenant, hashes, stretches, wait_seconds)]

    def placed(self, ticket: Ticket, plan: Plan) -> int:
        """Tokens that need not be computed there. What was kept for the request while it waited goes."""
        spec, placement, hashes = (
            (plan.prefill or plan.decode).spec,
            ticket.placement,
            ticket.prompt.block_hashes,
        )
        predicted = placement.match.cached_tokens(spec.worker_id, placement.prompt_tokens)
        first_block = hashes[0] if hashes else None
        ticket.prefilled = Prefilled(spec.worker_id, spec.epoch, predicted, first_block)
        ticket.prompt = HashedPrompt()
        return predicted

    def ended(self, ticket: Ticket, outcome: Outcome, actual: int | None) -> CachedTokens | None:
        """actual: cached tokens as the engine told, if it did."""
        ran = ticket.prefilled
        if ran is None:
            return None
        if outcome is Outcome.COMPLETED and ran.first_block and self.index.followed:
            self.proof.ran(ran.worker_id, ran.epoch, ran.first_block)
        if actual is None:
            return None
        return CachedTokens(ticket.placement.prompt_tokens, ran.predicted_cached_tokens, actual)

    def _could_run(self, ticket: Ticket) -> WorkerId | None:
        """One whose blocks are as those that are hashed."""
        members = (m for role in _PREFILLS for m in self._membership.registered(ticket.placement.model, role))
        size = ticket.prompt.block_tokens
        return next((m.spec.worker_id for m in members if m.spec.kv_shape.block_size_tokens == size), None)
