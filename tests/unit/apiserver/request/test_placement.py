"""What a placement tells the router while its answer grows."""

from types import SimpleNamespace

import pytest

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.links.requests import PlacementEnd
from llmserve.apiserver.request.context import RequestInfo
from llmserve.apiserver.request.placement import RequestPlacement
from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import Outcome


class Router:
    def __init__(self) -> None:
        self.reports: list[tuple[str, int]] = []
        self.ends: list[PlacementEnd] = []

    def first_token(self, request_id: str) -> None:
        pass

    def done(self, request_id: str, end: PlacementEnd) -> None:
        self.ends.append(end)

    def progress(self, request_id: str, output_tokens: int) -> None:
        self.reports.append((request_id, output_tokens))


def test_progress_is_reported_each_256_tokens() -> None:
    router, info = Router(), RequestInfo(RequestId("a"), TenantId("t"))
    context = SimpleNamespace(router=router)
    placement = RequestPlacement(info, context, [SequenceRecord()])  # type: ignore[arg-type]
    for tokens in (255, 1, 255, 300, 1):
        placement.generated += tokens
        if placement.generated >= placement.report_at:
            placement.report_progress()
    assert router.reports == [("a", 256), ("a", 811)]
    assert placement.report_at == 1024


@pytest.mark.parametrize("shown", [True, False])
def test_a_hand_over_is_measured_from_a_first_token_that_prefill_drew(
    monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    """shown: whether prefill's token was. Otherwise the first token is decode's."""
    router, info, times = Router(), RequestInfo(RequestId("a"), TenantId("t")), iter((5.0, 5.25))
    monkeypatch.setattr("llmserve.apiserver.request.placement.time.monotonic", lambda: next(times))
    context = SimpleNamespace(router=router)
    placement = RequestPlacement(info, context, [SequenceRecord()])  # type: ignore[arg-type]
    if shown:
        placement.first_token()
    placement.handed_over()
    placement.done(Outcome.COMPLETED)
    assert [end.handover_seconds for end in router.ends] == [0.25 if shown else None]
