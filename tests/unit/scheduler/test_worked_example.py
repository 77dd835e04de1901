"""The worked example of docs/scheduling.md, turn by turn."""

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.fairness import FairShare, TenantShares
from llmserve.scheduler.request import QueuedRequest

GOLD, BASIC, THIRD = TenantId("gold"), TenantId("basic"), TenantId("third")


def turn(fair: FairShare, number: int) -> tuple[TenantId, QueuedRequest]:
    """Who is served, with 300 prompt tokens and 100 expected ones."""
    tenant = fair.next()
    assert tenant is not None
    request = QueuedRequest(
        RequestId(str(number)), tenant, 0.0, 1e9, prompt_tokens=300, expected_output_tokens=100
    )
    fair.dispatched(request)
    return tenant, request


def test_the_turns_of_the_page() -> None:
    fair = FairShare(TenantShares({GOLD: 4.0}))
    fair.join(GOLD)
    fair.join(BASIC)
    served, times = [], []
    for number in range(1, 12):
        served.append(turn(fair, number)[0])
        times.append(fair.virtual_time)
    assert served == [GOLD, BASIC, GOLD, GOLD, GOLD, BASIC, GOLD, GOLD, GOLD, GOLD, BASIC]
    assert [times[number - 1] for number in (1, 2, 5, 6, 10, 11)] == [0, 0, 300, 400, 700, 800]


def test_a_short_answer_is_paid_back_and_a_newcomer_is_next() -> None:
    """What gold has paid too much for turn 3 brings it a turn sooner: 80 tokens less, for weight 4."""
    fair = FairShare(TenantShares({GOLD: 4.0}))
    fair.join(GOLD)
    fair.join(BASIC)
    requests = {number: turn(fair, number)[1] for number in range(1, 11)}
    before = fair.virtual_time
    fair.ended(requests[3], 20)
    fair.join(THIRD)
    assert (before, fair.next()) == (700, THIRD)
    fair.leave(THIRD)
    assert turn(fair, 11)[0] == GOLD, "780 is before basic's 800"
