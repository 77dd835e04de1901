from typing import Any

import pytest

from llmserve.core.request import PairStatus
from llmserve.router.workers.worker import links_of


def _pair(peer: str, **fields: Any) -> PairStatus:
    known: dict[str, Any] = {
        "transport": "nixl",
        "chosen": True,
        "breaker": "closed",
        "reason": "",
        "small_seconds": 0.001,
        "bytes_per_second": 1e9,
        "transfers": 0,
        "bytes": 0,
        "seconds": 0.0,
        "failures": 0,
    }
    return PairStatus(peer=peer, **(known | fields))


def test_the_chosen_transport_counts() -> None:
    slow = _pair("prefill-0", transport="tcp", chosen=False, bytes_per_second=1e6)
    links = links_of([slow, _pair("prefill-0"), _pair("prefill-1", bytes_per_second=0.0)])
    assert set(links) == {"prefill-0"}
    assert links["prefill-0"].seconds(2e9) == pytest.approx(2.001)


def test_a_measured_link_counts_however_slow_it_is() -> None:
    assert set(links_of([_pair("prefill-0", bytes_per_second=0.5)])) == {"prefill-0"}


def test_what_requests_took_beyond_the_wire_is_the_fixed_part() -> None:
    links = links_of([_pair("prefill-0", transfers=10, bytes=10**9, seconds=1.5)])
    assert links["prefill-0"].fixed_seconds == pytest.approx(0.05)


def test_requests_that_were_faster_than_the_probe_leave_its_latency() -> None:
    links = links_of([_pair("prefill-0", transfers=10, bytes=10**9, seconds=0.1)])
    assert links["prefill-0"].fixed_seconds == 0.001


def test_a_pair_that_does_not_fit_is_known() -> None:
    links = links_of([_pair("prefill-0", transport="", chosen=False, breaker="refused")])
    assert links["prefill-0"].refused
