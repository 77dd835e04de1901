"""Any backlog: shares are proportional, nobody starves, idling neither saves up nor is punished."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.fairness import FairShare, TenantShares
from llmserve.scheduler.request import QueuedRequest

MOST_TOKENS = 500
weights = st.lists(st.sampled_from((0.5, 1.0, 2.0, 4.0)), min_size=2, max_size=5)
sizes = st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=50)


class Backlog:
    """Tenants that always have something waiting; sizes are dealt to whoever is served."""

    def __init__(self, tenant_weights: list[float], tokens: list[int]) -> None:
        self.weights = {TenantId(str(index)): weight for index, weight in enumerate(tenant_weights)}
        self.fairness = FairShare(TenantShares(self.weights))
        self.served: Counter[TenantId] = Counter()
        self.turns = 0
        self._tokens = tokens

    def serve(self) -> TenantId:
        tenant = self.fairness.next()
        assert tenant is not None
        self.dispatch(tenant, self._tokens[self.turns % len(self._tokens)])
        return tenant

    def dispatch(self, tenant: TenantId, tokens: int, estimate: int | None = None) -> QueuedRequest:
        self.turns += 1
        request = QueuedRequest(RequestId(str(self.turns)), tenant, 0.0, 1.0)
        request = replace(request, expected_output_tokens=estimate or tokens)
        self.fairness.dispatched(request)
        self.served[tenant] += tokens
        return request

    def share(self, tenant: TenantId) -> float:
        return self.served[tenant] / self.weights[tenant]

    def slack(self, one: TenantId, other: TenantId) -> float:
        """The bound of start-time fair queueing: a largest request of each."""
        return MOST_TOKENS / self.weights[one] + MOST_TOKENS / self.weights[other]

    def check_proportional(self) -> None:
        for one in self.weights:
            for other in self.weights:
                assert abs(self.share(one) - self.share(other)) <= self.slack(one, other) + 1e-6


@given(weights, sizes, st.integers(1, 300))
@settings(max_examples=60, deadline=None, database=None)
def test_shares_are_proportional_to_weights_at_any_time(w: list[float], s: list[int], turns: int) -> None:
    backlog = Backlog(w, s)
    for tenant in backlog.weights:
        backlog.fairness.join(tenant)
    before = 0.0
    for _ in range(turns):
        backlog.serve()
        backlog.check_proportional()
        assert backlog.fairness.virtual_time >= before
        before = backlog.fairness.virtual_time


@given(weights, sizes, st.integers(0, 100))
@settings(max_examples=60, deadline=None, database=None)
def test_nobody_starves(w: list[float], s: list[int], warm_up: int) -> None:
    """Between two turns of a tenant, each other gets at most its share of what the first turn cost, and
    one request more."""
    backlog = Backlog(w, s)
    for tenant in backlog.weights:
        backlog.fairness.join(tenant)
    for _ in range(warm_up):
        backlog.serve()
    for tenant, weight in backlog.weights.items():
        others = sum(weight_of for name, weight_of in backlog.weights.items() if name != tenant)
        bound = others * MOST_TOKENS / weight + (len(w) - 1) * MOST_TOKENS
        waited = 0
        while (served := backlog.serve()) != tenant:
            waited += backlog._tokens[(backlog.turns - 1) % len(s)]
            assert waited <= bound + 1e-6, served


@given(weights, sizes, st.integers(1, 200))
@settings(max_examples=60, deadline=None, database=None)
def test_a_tenant_that_was_idle_saved_nothing_up(w: list[float], s: list[int], turns: int) -> None:
    backlog = Backlog(w, s)
    idle, *busy = backlog.weights
    for tenant in busy:
        backlog.fairness.join(tenant)
    for _ in range(turns):
        backlog.serve()
    backlog.fairness.join(idle)
    backlog.served.clear()
    for _ in range(turns):
        backlog.serve()
        for tenant in busy:
            assert backlog.share(idle) - backlog.share(tenant) <= backlog.slack(idle, tenant) + 1e-6


@given(weights, sizes, st.integers(1, 100))
@settings(max_examples=60, deadline=None, database=None)
def test_what_was_used_while_nobody_waited_is_forgiven(w: list[float], s: list[int], turns: int) -> None:
    backlog = Backlog(w, s)
    alone, *others = backlog.weights
    for _ in range(turns):
        backlog.fairness.join(alone)
        backlog.serve()
        backlog.fairness.leave(alone)
    for tenant in backlog.weights:
        backlog.fairness.join(tenant)
    backlog.served.clear()
    for _ in range(turns):
        backlog.serve()
        for tenant in others:
            assert backlog.share(tenant) - backlog.share(alone) <= backlog.slack(tenant, alone) + 1e-6


@given(weights, st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None, database=None)
def test_corrected_charges_are_what_was_used(w: list[float], pairs: list[tuple[int, int]]) -> None:
    """However wrong the estimates: with each request corrected before the next turn, shares are as
    proportional as with right ones."""
    backlog = Backlog(w, [1])
    for tenant in backlog.weights:
        backlog.fairness.join(tenant)
    for estimate, used in pairs:
        turn = backlog.fairness.next()
        assert turn is not None
        request = backlog.dispatch(turn, used, estimate)
        backlog.fairness.corrected(request, used // 2)
        backlog.fairness.ended(request, used)
        backlog.check_proportional()


def test_holding_kv_is_charged_when_it_is_the_scarcer() -> None:
    """100 cached prompt tokens of 110 cost what they hold, not what they compute."""
    request = QueuedRequest(RequestId("a"), TenantId("t"), 0.0, 1.0, prompt_tokens=110, cached_tokens=100)
    assert TenantShares().cost(request, 10) == 20
    assert TenantShares(kv_token_price=0.1).cost(request, 10) == 20
    assert TenantShares(kv_token_price=0.5).cost(request, 10) == 60


def test_the_worked_example_of_the_documentation() -> None:
    """docs/scheduling.md: weights 4 and 1, every request 400 tokens, one at a time."""
    gold, basic = TenantId("gold"), TenantId("basic")
    fairness = FairShare(TenantShares({gold: 4.0}))
    fairness.join(gold)
    fairness.join(basic)
    turns = ""
    for number in range(11):
        tenant = fairness.next()
        assert tenant is not None
        turns += tenant[0]
        fairness.dispatched(
            QueuedRequest(RequestId(str(number)), tenant, 0.0, 1.0, 300, expected_output_tokens=100)
        )
    assert turns == "gbgggbggggb"
    assert fairness.virtual_time == 800.0
