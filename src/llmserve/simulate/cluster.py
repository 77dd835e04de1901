"""A cluster in virtual time: the router's controller, engines, and what an apiserver does for a request.

    arrive -> admit -> prefill leg -> first token -> decode leg fetches the KV -> done

When the KV is pushed, the decode leg arrives before prefill has finished, and holds its blocks.
"""

import random

from llmserve.core.adapters import AdapterReports, LoraShape
from llmserve.core.clock import Agenda
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest, ApiserverId, LeaseId, RequestId, TenantId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.core.request import Outcome, WorkerRole
from llmserve.engines.sim.step import PullOrder
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, Effect, RequestPlaced, RequestRefused
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.worker import KvShape, WorkerSpec
from llmserve.simulate.engine import VirtualEngine
from llmserve.simulate.flight import Flight
from llmserve.simulate.index_feed import IndexFeed
from llmserve.simulate.observed import Observed, SimRecord
from llmserve.simulate.sequence import BlockNames, SimLeg, TracedSequence
from llmserve.simulate.shape import ClusterShape
from llmserve.traces import TracedRequest

# As apiservers do: the router hears of every so many tokens.
_PROGRESS_TOKENS = 256
# Slack of the router's own timer (router/event_loop.py).
_TICK_SLACK_SECONDS = 0.001
_EPOCH = 1


class VirtualCluster:
    """arrive is called at the agenda's time; each SimRecord is filled in as its request proceeds."""

    def __init__(self, shape: ClusterShape, agenda: Agenda, rng: random.Random) -> None:
        self._shape, self._agenda = shape, agenda
        self._feed = IndexFeed(agenda)
        self._controller = Controller(shape.router, agenda.clock, rng, self._feed.index)
        self._controller.take_over(None, 0.0, adapters=shape.adapters.book(shape.model), epoch=_EPOCH)
        self._session, _ = self._controller.open_session(ApiserverId("simulated"), ())
        self.engines: dict[WorkerId, VirtualEngine] = {}
        self.observed = Observed()
        self.open_requests = 0
        self.moved_at = 0.0  # when something last happened to a request
        self._flights: dict[RequestId, Flight] = {}
        self._namespaces: dict[tuple[TenantId, AdapterDigest], int] = {}
        self._tick_at: float | None = None
        self._count = 0
        for index, (name, role) in enumerate(shape.workers):
            self._register(name, role, index / len(shape.workers))
        agenda.at(1.0, self._second_over)

    def __repr__(self) -> str:
        return f"<VirtualCluster open={self.open_requests} {self._controller!r}>"

    def arrive(self, record: SimRecord) -> None:
        request = record.request
        try:
            self._shape.limits.check_sizes(request.prompt_tokens, request.output_tokens)
        except InvalidRequest as error:
            record.refusal = type(error).__name__
            return
        self._count += 1
        self.open_requests += 1
        request_id = RequestId(f"request-{self._count}")
        flight = self._flights[request_id] = Flight(request_id, record, self._names(request))
        self.observed.waiting[request.tenant] += 1
        self._apply(self._controller.requests.admit(self._session, self._admit(flight)))

    def check_integrity(self) -> None:
        """Raises AssertionError when anything is lost, or counted other than once."""
        self._controller.check_integrity()
        assert self._flights.keys() == set(self._session.entries), self
        for engine in self.engines.values():
            engine.pool.check_integrity()

    # -- the router

    def _register(self, name: WorkerId, role: WorkerRole, phase: float) -> None:
        shape, limits = self._shape, self._shape.limits
        self.engines[name] = VirtualEngine(
            name, limits.total_blocks, shape.batch, shape.timing_of(name), self._agenda, self, shape.adapters
        )
        size = limits.block_size_tokens
        kv = KvShape("simulated", "sim", "sim", size, 1, 1, int(shape.kv_bytes_per_token * size))
        spec = WorkerSpec(
            worker_id=name,
            role=role,
            address="simulated",
            epoch=_EPOCH,
            model=shape.model,
            kv_shape=kv,
            max_model_len_tokens=limits.max_model_len,
            total_blocks=limits.total_blocks,
            max_concurrency=limits.batch.max_concurrency,
            transports=("simulated",),
            handover_endpoints=("simulated",),
            lora=LoraShape(shape.adapters.slots),
            min_decode_slots=shape.min_decode_slots,
        )
        self._apply(self._controller.register(spec))
        self.adapters_changed(self.engines[name])
        self._agenda.at(phase * shape.router.heartbeat_seconds, lambda: self._heartbeat(name))

    def _heartbeat(self, name: WorkerId) -> None:
        load = self.engines[name].load()
        self.observed.heartbeat(name, load.used_blocks)
        self._apply(self._controller.heartbeat(name, _EPOCH, load))
        next_at = self._agenda.now + self._shape.router.heartbeat_seconds
        self._agenda.at(next_at, lambda: self._heartbeat(name))

    def _admit(self, flight: Flight) -> Admit:
        request = flight.request
        most = request.max_output_tokens or self._shape.limits.max_model_len - request.prompt_tokens
        return Admit(
            flight.request_id,
            request.tenant,
            PlacementRequest(self._shape.model, request.prompt_tokens, adapter=request.adapter),
            max_output_tokens=most,
            prompt=flight.names.prompt(),
        )

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, RequestPlaced):
                self._placed(effect)
            elif isinstance(effect, RequestRefused):
                self._refused(effect)
        wake = self._controller.next_wake()
        if wake is not None and (self._tick_at is None or wake < self._tick_at):
            self._tick_at = wake
            self._agenda.at(wake + _TICK_SLACK_SECONDS, lambda: self._tick(wake))

    def _tick(self, at: float) -> None:
        if self._tick_at == at:
            self._tick_at = None
        self._apply(self._controller.tick())

    def _second_over(self) -> None:
        self.observed.second_over()
        self._agenda.at(self._agenda.now + 1.0, self._second_over)

    # -- a request's way

    def _refused(self, refused: RequestRefused) -> None:
        flight = self._flights.pop(refused.request_id)
        flight.record.refusal = type(refused.error).__name__
        flight.record.ended_at = self._agenda.now
        self.observed.waiting[flight.request.tenant] -= 1
        self.open_requests -= 1

    def _placed(self, placed: RequestPlaced) -> None:
        flight = self._flights[placed.request_id]
        flight.record.placed_at = self._agenda.now
        request, plan = flight.request, placed.plan
        self.observed.waiting[request.tenant] -= 1
        self.observed.placed(plan)
        flight.decode = self.engines[plan.decode.spec.worker_id]
        if plan.prefill is None:
            flight.decode.add(self._leg(flight, SimLeg.WHOLE, request.prompt_tokens, request.output_tokens))
            return
        flight.prefill = self.engines[plan.prefill.spec.worker_id]
        flight.pushed = plan.pushed and request.output_tokens > 1
        prefill = self._leg(flight, SimLeg.PREFILL, request.prompt_tokens, 1)
        prefill.extra_seconds_per_token = self._shape.push_seconds_per_token if flight.pushed else 0.0
        flight.prefill.add(prefill)
        if flight.pushed:
            self._add_decode(flight, request.prompt_tokens)

    def _add_decode(self, flight: Flight, prompt_tokens: int) -> None:
        assert flight.prefill, flight
        assert flight.decode, flight
        request = flight.request
        ticket = PullParams(
            flight.prefill.worker_id,
            _EPOCH,
            LeaseId(flight.request_id),
            endpoints=(),
            blocks=BlockTable((0,) * -(-request.prompt_tokens // self._shape.limits.block_size_tokens)),
            num_tokens=request.prompt_tokens,
            block_size_tokens=self._shape.limits.block_size_tokens,
            lease_seconds=self._shape.transfer.lease_seconds,
        )
        flight.decode.add(self._leg(flight, SimLeg.DECODE, prompt_tokens, request.output_tokens - 1, ticket))

    def _leg(
        self, flight: Flight, leg: SimLeg, prompt: int, answer: int, ticket: PullParams | None = None
    ) -> TracedSequence:
        return TracedSequence(flight.request_id, leg, flight.names, prompt, answer, ticket)

    def drawn(self, engine: VirtualEngine, sequence: TracedSequence, tokens: int, seconds: float) -> None:
        """See EngineOwner."""
        flight = self._flights[sequence.request_id]
        if sequence.leg is SimLeg.PREFILL:
            blocks = engine.finish(sequence)  # before the router hears of it, and gives its slot to another
            self._count_tokens(flight, sequence, tokens, seconds)
            self._prefilled(flight, blocks)
            return
        self._count_tokens(flight, sequence, tokens, seconds)
        if sequence.left_tokens == 0:
            engine.release(engine.finish(sequence))
            self._over(flight)
        else:
            self._report_progress(flight, tokens)

    def _prefilled(self, flight: Flight, blocks: list[int]) -> None:
        flight.leased = blocks
        if flight.request.output_tokens == 1:
            self._end_lease(flight)
            self._over(flight)
        elif not flight.pushed:
            self._add_decode(flight, flight.request.prompt_tokens + 1)
        elif flight.order is not None:
            self._fetched(flight)

    def pull(self, engine: VirtualEngine, order: PullOrder[TracedSequence]) -> None:
        """See EngineOwner. Pushed KV has arrived when prefill has finished; the rest takes the time of its
        bytes."""
        flight = self._flights[order.sequence.request_id]
        flight.order = order
        if flight.leased is not None:
            seconds = len(order.tokens) * self._shape.transfer_seconds_per_token
            self._agenda.at(self._agenda.now + seconds, lambda: self._fetched(flight))

    def _fetched(self, flight: Flight) -> None:
        assert flight.decode, flight
        self._end_lease(flight)
        flight.decode.pull_ended(flight.request_id, (0,) if flight.pushed else ())

    def unneeded(self, ticket: PullParams) -> None:
        """See EngineOwner."""
        self._end_lease(self._flights[RequestId(ticket.lease_id)])

    def cache_changed(self, engine: VirtualEngine) -> None:
        """See EngineOwner."""
        self._feed.changed(engine)

    def adapters_changed(self, engine: VirtualEngine) -> None:
        """See EngineOwner. A change wakes the worker's heartbeat."""
        name, reports = engine.worker_id, AdapterReports(tuple(engine.adapters.reports()))
        self._apply(self._controller.heartbeat(name, _EPOCH, engine.load(), reports=reports))

    def _end_lease(self, flight: Flight) -> None:
        assert flight.prefill, flight
        assert flight.leased is not None, flight
        flight.prefill.release(flight.leased)

    def _over(self, flight: Flight) -> None:
        record = flight.record
        record.ended_at = self._agenda.now
        del self._flights[flight.request_id]
        self.observed.over(flight.request_id)
        self.open_requests -= 1
        self._apply(
            self._controller.requests.done(
                self._session,
                flight.request_id,
                Outcome.COMPLETED,
                record.output_tokens,
                handover_seconds=flight.handover_seconds,
            )
        )

    # -- what is recorded

    def _count_tokens(self, flight: Flight, sequence: TracedSequence, tokens: int, seconds: float) -> None:
        """An engine that computes a prompt draws one token."""
        now = self.moved_at = self._agenda.now
        if flight.record.first_at is not None:
            if flight.prefill is not None and flight.handover_seconds is None:
                flight.handover_seconds = now - (tokens - 1) * seconds - flight.record.first_at
            self.observed.tokens(flight.request_id, flight.record, now, tokens, seconds)
            return
        assert tokens == 1, flight
        cached = sequence.stats.local_cached_tokens
        self.observed.first_token(flight.request_id, flight.record, now, cached)
        self._apply(self._controller.requests.first_token(self._session, flight.request_id))

    def _report_progress(self, flight: Flight, tokens: int) -> None:
        output = flight.record.output_tokens
        if output // _PROGRESS_TOKENS > (output - tokens) // _PROGRESS_TOKENS:
            self._apply(self._controller.requests.progress(self._session, flight.request_id, output))

    def _names(self, request: TracedRequest) -> BlockNames:
        tenant = TenantId("") if self._shape.shares_kv else request.tenant
        namespace = self._namespaces.setdefault((tenant, request.adapter), len(self._namespaces))
        return BlockNames(request, self._count, namespace, self._shape.limits.block_size_tokens)
