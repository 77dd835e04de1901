"""Turns events into decisions, and delivers their effects.

One synchronous call into the controller decides each event, on the one event loop. The task `run` adds the
passing of time: it sleeps until something is due.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from llmserve.config.wanted_models import ServedName
from llmserve.core.adapters import NamedAdapter
from llmserve.core.clock import Clock
from llmserve.core.ids import WorkerId
from llmserve.router.adapters.leftovers import AdapterLeftovers
from llmserve.router.adapters.watch import AdapterWatch
from llmserve.router.codec import PlacementEncoder, encode_cluster, encode_refused
from llmserve.router.controller import Controller
from llmserve.router.events import Effect, Prefetch, RequestPlaced, RequestRefused
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.models.watch import ModelWatch
from llmserve.router.observe import MetricsRecorder, QueueSpans
from llmserve.router.prefix.hash_check import HashState
from llmserve.router.streams import SessionStreams
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_log = logging.getLogger(__name__)

# Loop timers are good to a millisecond: waking just before the time would mean to spin until it.
_TIMER_SLACK_SECONDS = 0.001


class EventLoop:
    """Decides nothing unless this router leads. streams: the sessions that answers go to. spans: one for
    each waiting request. adapter_watch: waits for what is decided about adapters. leftovers: of those that
    are gone. model_watch: as adapter_watch. decided: set by each decision; who waits for one clears it."""

    def __init__(
        self,
        controller: Controller,
        clock: Clock,
        recorder: MetricsRecorder,
        kv_watch: KvWatch,
        leader_check: LeaderCheck,
        spans: QueueSpans,
        adapter_watch: AdapterWatch,
    ) -> None:
        self.streams, self.spans, self.adapter_watch = SessionStreams(), spans, adapter_watch
        self.leftovers = AdapterLeftovers(controller.adapters.lifecycle, kv_watch)
        self.model_watch = ModelWatch(controller.models)
        self._controller, self._clock, self._recorder = controller, clock, recorder
        self._kv_watch, self._leader_check = kv_watch, leader_check
        self._encoder = PlacementEncoder()
        self._logged_state = HashState.UNPROVEN
        self._sent_version, self._sent_names = controller.cluster_version, controller.adapters.names()
        self._sent_models = controller.models.served()
        self._logged_workers: set[tuple[WorkerId, int]] = set()
        self._sleeping_until = 0.0
        self._wake = asyncio.Event()
        self.decided = asyncio.Event()

    async def run(self) -> None:
        """Does what is due until the term ends. Errors: NotLeader."""
        while True:
            with self.deciding() as effects:
                effects += self._controller.tick()
            self._warn()
            wake = self._controller.next_wake()
            self._sleeping_until = float("inf") if wake is None else wake
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sleep_seconds(wake)):
                    await self._wake.wait()

    @contextmanager
    def deciding(self) -> Iterator[list[Effect]]:
        """Yields a list for the effects of one event, or of several that came together. They are delivered at
        the end, also when a later event fails. Errors: NotLeader; nothing happens then."""
        self._leader_check.check()
        effects: list[Effect] = []
        started = time.perf_counter()
        try:
            yield effects
        finally:
            self._recorder.decided(time.perf_counter() - started)
            self.apply(effects)

    def apply(self, effects: list[Effect]) -> None:
        # New names are in the outbox of every session before the calls that wait for them go on, so an
        # apiserver that answers a later question has them.
        self._send_cluster()
        self.adapter_watch.look()
        self.model_watch.look()
        self.leftovers.look()
        for effect in effects:
            self._recorder.record(effect)
            self.spans.record(effect)
            if isinstance(effect, RequestPlaced | RequestRefused):
                self._answer(effect)
            elif isinstance(effect, Prefetch):
                self._kv_watch.prefetch(effect)
        self.streams.want_places(self._controller.wants_places)
        self.decided.set()
        wake = self._controller.next_wake()
        if wake is not None and wake < self._sleeping_until:
            self._wake.set()

    def cluster(self) -> router_pb2.RouterSessionResponse:
        """The view of the cluster that apiservers receive first."""
        return self._cluster(self._controller.adapters.names(), self._controller.models.served())

    # -- parts

    def _answer(self, effect: RequestPlaced | RequestRefused) -> None:
        message = self.streams.next(effect.session)
        if message is None:
            return
        if isinstance(effect, RequestPlaced):
            self._encoder.placed(effect, message.placed)
        else:
            encode_refused(effect, message.refused)

    def _warn(self) -> None:
        """Logs once when cached prompts turn out not to be found, and when they are found at last."""
        hash_check = self._controller.prefixes.hash_check
        if hash_check.state is self._logged_state:
            return
        self._logged_state = hash_check.state
        if hash_check.problem:
            _log.warning("requests are not routed to what is cached: %s", hash_check.problem)
        else:
            _log.info("prefix index: %s", hash_check.state)

    def _cluster(
        self, adapters: Sequence[NamedAdapter] | None, models: Sequence[ServedName] | None
    ) -> router_pb2.RouterSessionResponse:
        """None: they are unchanged."""
        controller, epoch = self._controller, self._leader_check.status().epoch
        come_and_go = models if controller.models.manages else None
        return encode_cluster(controller.membership, epoch, adapters, come_and_go)

    def _send_cluster(self) -> None:
        version, names = self._controller.cluster_version, self._controller.adapters.names()
        served = self._controller.models.served()
        same = self._sent_names is names and self._sent_models is served
        if self._sent_version == version and same:
            return
        adapters = None if self._sent_names is names else names
        models = None if self._sent_models is served else served
        if self._sent_version != version:
            self._encoder.forget_all()
            self._log_workers()
        self._sent_version, self._sent_names, self._sent_models = version, names, served
        self.streams.send_state(self._cluster(adapters, models))

    def _log_workers(self) -> None:
        specs = {m.spec.worker_id: m.spec for m in self._controller.membership if m.registered}
        for spec in specs.values():
            if (spec.worker_id, spec.epoch) not in self._logged_workers:
                _log.info("worker %s is in use: %s at %s", spec.worker_id, spec.role, spec.address)
        for worker_id, _ in self._logged_workers:
            if worker_id not in specs:
                _log.warning("worker %s is gone", worker_id)
        self._logged_workers = {(spec.worker_id, spec.epoch) for spec in specs.values()}

    def _sleep_seconds(self, wake: float | None) -> float | None:
        return None if wake is None else max(0.0, wake - self._clock.now()) + _TIMER_SLACK_SECONDS
