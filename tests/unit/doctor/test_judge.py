"""From trials to findings."""

import pytest

from llmserve.doctor import Status
from llmserve.doctor.judge import Setting, baseline, judge
from llmserve.doctor.measure import COPY, READ, SOCKET
from llmserve.doctor.trial import REPORT_WORD, TrialOutcome, TrialReport

_PLAIN = {COPY: 20e9, SOCKET: 5e9}
_ANYWHERE = Setting()


def _measured(rate: float) -> TrialReport:
    return TrialReport(TrialOutcome.MEASURED, rates={READ: rate})


@pytest.mark.parametrize(("rate", "status"), [(5e9, Status.OK), (1e9, Status.NOTE), (0.4e9, Status.WARNING)])
def test_tcp_is_compared_with_a_plain_socket(rate: float, status: Status) -> None:
    found = judge("tcp", _measured(rate), _PLAIN, _ANYWHERE)
    assert found.status is status
    assert found.value == f"{rate / 1e9:.1f} GB/s, {rate / 5e9:.2f}x a plain socket"
    assert found.figures == {"gigabytes_per_second": rate / 1e9}


def test_shm_is_compared_with_a_copy_in_memory() -> None:
    assert judge("shm", _measured(15e9), _PLAIN, _ANYWHERE).value == "15.0 GB/s, 0.75x a copy in memory"


def test_without_a_baseline_the_figure_stands_alone() -> None:
    found = judge("tcp", _measured(1e6), {}, _ANYWHERE)
    assert (found.status, found.value) == (Status.OK, "0.0 GB/s")


def test_what_is_expected_is_said() -> None:
    laptop, rdma = Setting(), Setting(has_rdma=True, has_gpus=True)
    assert judge("nixl", _measured(9e9), _PLAIN, laptop).advice == (
        "NIXL uses UCX over TCP and shared memory: expected on a host without RDMA."
    )
    assert judge("ucx", _measured(9e9), _PLAIN, laptop).advice.startswith("UCX goes over TCP")
    assert "gloo" in judge("nccl", _measured(9e9), _PLAIN, laptop).advice
    for kind in ("nixl", "ucx", "nccl"):
        assert judge(kind, _measured(9e9), _PLAIN, rdma).status is Status.OK


def test_slowness_is_said_first() -> None:
    found = judge("nixl", _measured(0.1e9), _PLAIN, _ANYWHERE)
    assert found.status is Status.WARNING
    assert found.advice.startswith("Slower")
    assert found.advice.endswith("without RDMA.")


_GONE = TrialReport(TrialOutcome.UNAVAILABLE, "nixl: cannot be imported: no nixl")


def test_a_transport_that_nobody_asked_for_may_be_absent() -> None:
    found = judge("nixl", _GONE, _PLAIN, Setting(install={"nixl": "pip install nixl"}))
    assert (found.status, found.value) == (Status.NOTE, "not usable: cannot be imported: no nixl")
    assert found.advice == "To use it: pip install nixl"
    by_default = Setting(["nixl"], install={"nixl": "pip install nixl"})
    assert judge("nixl", _GONE, _PLAIN, by_default) == found
    assert judge("shm", _GONE, _PLAIN, _ANYWHERE).advice == "Other transports are used."


def test_a_transport_of_the_manifest_is_missed() -> None:
    found = judge("nixl", _GONE, _PLAIN, Setting(["nixl"], is_order_given=True))
    assert found.status is Status.WARNING
    assert "The manifest names it" in found.advice


def test_nothing_works_without_tcp() -> None:
    assert (
        judge("tcp", TrialReport(TrialOutcome.UNAVAILABLE, "no"), _PLAIN, _ANYWHERE).status is Status.PROBLEM
    )
    assert judge("tcp", TrialReport(TrialOutcome.HUNG, "no"), _PLAIN, _ANYWHERE).status is Status.PROBLEM


@pytest.mark.parametrize("outcome", [TrialOutcome.FAILED, TrialOutcome.CRASHED, TrialOutcome.HUNG])
def test_what_breaks_must_not_be_used(outcome: TrialOutcome) -> None:
    answer = TrialReport(outcome, "why")
    wanted = judge("nixl", answer, _PLAIN, Setting(["nixl"]))
    assert (wanted.status, wanted.value) == (Status.PROBLEM, f"{outcome}: why")
    assert "Take nixl out of transfer.engine_order" in wanted.advice
    assert judge("nixl", answer, _PLAIN, _ANYWHERE).status is Status.WARNING
    assert judge("shm", answer, _PLAIN, _ANYWHERE).status is Status.PROBLEM


def test_the_baseline_itself() -> None:
    found = baseline(TrialReport(TrialOutcome.MEASURED, rates=_PLAIN))
    assert (found.status, found.value) == (Status.OK, "a copy in memory 20.0 GB/s, a plain socket 5.0 GB/s")
    assert found.figures == {"copy_gigabytes_per_second": 20.0, "socket_gigabytes_per_second": 5.0}
    assert baseline(TrialReport(TrialOutcome.HUNG, "late")).status is Status.WARNING


def test_an_answer_among_other_lines(capsys: pytest.CaptureFixture[str]) -> None:
    said = TrialReport(TrialOutcome.MEASURED, rates={READ: 2.0})
    said.say()
    assert TrialReport.heard("a library's banner\n" + capsys.readouterr().out) == said
    assert TrialReport.heard(f"nothing\n{REPORT_WORD.lower()} x") is None
