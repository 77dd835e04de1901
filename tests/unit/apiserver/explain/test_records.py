"""What is remembered, for how long, and for whom."""

import json

import pytest

from llmserve.apiserver.explain.record import RecordHandle
from llmserve.apiserver.explain.records import RecordFinder, RequestRecords, after_text, parse_after
from llmserve.core.errors import InvalidRequest
from llmserve.core.request import Outcome
from llmserve.rpc.gen.llmserve.v1.router_pb2 import RowsQuestion
from llmserve.rpc.leader import RouterAddresses


def _request(records: RequestRecords, name: str, tenant: str = "red", *response_ids: str) -> RecordHandle:
    """One that has run to its end."""
    handle = records.open(name, tenant, "/v1/completions")
    for response_id in response_ids:
        handle.known_as(response_id)
    handle.sequence(f"{name}-0").ended(1.0, Outcome.COMPLETED, 3)
    handle.part_ended()
    handle.part_ended()
    records.check_integrity()
    return handle


def test_a_record_is_found_by_each_of_its_ids() -> None:
    records = RequestRecords(10)
    _request(records, "a", "red", "chatcmpl-1", "cmpl-2-0", "cmpl-2-1", "resp_3")
    for name in ("a", "chatcmpl-1", "cmpl-2", "resp_3"):
        found = records.find(name)
        assert found is not None
        assert found.ids == ["a", "chatcmpl-1", "cmpl-2", "resp_3"]
        assert found.sequences[0].outcome == "completed"
    assert records.find("chatcmpl") is None


def test_a_record_that_cannot_be_encoded_is_forgotten() -> None:
    records = RequestRecords(10)
    handle = records.open("a", "red", "/v1/completions")
    handle.record.status = 500
    handle.record.path = "\udc80"
    with pytest.raises(UnicodeEncodeError):
        handle.part_ended()
    assert records.find("a") is None
    records.check_integrity()


def test_it_is_found_while_it_runs() -> None:
    records = RequestRecords(10)
    handle = records.open("a", "red", "/v1/completions")
    handle.known_as("cmpl-1-0")
    found = records.find("cmpl-1")
    assert found is handle.record
    records.check_integrity()


def test_it_is_open_until_http_and_all_sequences_have_ended() -> None:
    records = RequestRecords(10)
    handle = records.open("a", "red", "/v1/completions")
    handle.sequence("a-0")
    handle.sequence("a-1")
    for _ in range(3):
        assert not handle.record.ended_at
        handle.part_ended()
    assert handle.record.ended_at


def test_the_oldest_are_forgotten_first() -> None:
    records = RequestRecords(2)
    for name in "abc":
        _request(records, name)
    assert [records.find(name) is not None for name in "abc"] == [False, True, True]
    records.set_limit(1)
    assert records.find("b") is None
    records.check_integrity()


def test_the_size_is_bounded_whatever_the_number() -> None:
    records = RequestRecords(100_000, max_bytes=20_000)
    for number in range(500):
        _request(records, f"request-{number}", "red", f"chatcmpl-{number}")
    assert records.size_bytes <= 20_000
    assert 5 < len(records) < 40
    assert records.find("request-499") is not None


def test_one_that_is_larger_than_all_is_not_kept() -> None:
    records = RequestRecords(10, max_bytes=1000)
    _request(records, "a", "red", *(f"resp_{number:0100}" for number in range(20)))
    assert records.find("a") is None
    assert records.size_bytes == 0


def test_nothing_is_remembered_with_a_limit_of_0() -> None:
    records = RequestRecords(0)
    _request(records, "a")
    assert records.find("a") is None
    assert len(records) == 0


def test_what_generated_nothing_is_kept_only_when_it_failed() -> None:
    records = RequestRecords(10)
    for name, status in (("tokenize", 200), ("wrong", 400)):
        handle = records.open(name, "red", "/v1/completions")
        handle.record.status = status
        handle.part_ended()
    assert records.find("tokenize") is None
    assert records.find("wrong") is not None
    records.check_integrity()


def test_equal_ids_of_two_tenants_hide_nothing() -> None:
    records = RequestRecords(10)
    _request(records, "mine", "red")
    _request(records, "mine", "blue")
    red, latest = records.find("mine", "red"), records.find("mine")
    assert red is not None
    assert latest is not None
    assert (red.tenant, latest.tenant) == ("red", "blue")
    assert records.find("mine", "green") is None


def _latest(
    records: RequestRecords, after: int = 0, tenant: str = "", limit: int = 10
) -> tuple[list[str], int]:
    found, following = records.latest(tenant, after, limit)
    assert len({number for number, _ in found}) == len(found)
    return [record.ids[0] for _, record in found], following


def test_a_look_begins_where_the_one_before_ended() -> None:
    """What runs is in each look. A request that began before a look and ends after it is in the next one."""
    records = RequestRecords(10)
    assert _latest(records) == ([], 0)
    long = records.open("long", "red", "/v1/completions")
    long.sequence("long-0")
    _request(records, "a")
    _request(records, "b", "blue")
    first, after = _latest(records)
    assert first == ["long", "b", "a"]
    assert _latest(records, after) == (["long"], after)
    _request(records, "c")
    long.part_ended()
    long.part_ended()
    again, following = _latest(records, after)
    assert again == ["long", "c"]
    assert following == after + 2
    assert _latest(records, following) == ([], following)
    records.check_integrity()


def test_a_look_is_of_one_tenant_and_of_bounded_size() -> None:
    records = RequestRecords(10)
    for name in "abc":
        _request(records, name)
    _request(records, "d", "blue")
    assert _latest(records, limit=2) == (["d", "c"], 4)
    assert _latest(records, tenant="red", limit=2) == (["c", "b"], 4)
    assert _latest(records, tenant="blue") == (["d"], 4)


async def test_without_a_router_only_the_own_rows_are_known() -> None:
    records = RequestRecords(10)
    finder = RecordFinder(records, "a", RouterAddresses(()))
    _request(records, "mine", "red")
    _request(records, "yours", "blue")
    found = await finder.rows_anywhere("red", {}, 10)
    assert [one["request_id"] for one in found["requests"]] == ["mine"]
    assert "other apiservers" in found["problem"]
    (instance,) = found["after"]
    assert instance.startswith("a@")
    _request(records, "next", "red")
    later = await finder.rows_anywhere("red", {**found["after"], "b@1": 7, "a@0": 9}, 10)
    assert [one["request_id"] for one in later["requests"]] == ["next"]
    assert later["after"].keys() == {instance, "b@1"}


def test_the_rows_of_this_apiserver_are_json() -> None:
    records = RequestRecords(10)
    _request(records, "mine")
    answer = json.loads(RecordFinder(records, "a", RouterAddresses(())).rows_here(RowsQuestion(limit=5)))
    assert [one["instance"] for one in answer["requests"]] == [answer["instance"]]


@pytest.mark.parametrize("wrong", ["x", "a:", ":1", "a:-1", "a:1,b", "a:99999999999999999999"])
def test_what_no_answer_had_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="after"):
        parse_after(wrong)


def test_what_an_answer_had_is_read() -> None:
    after = {"apiserver-0@ab": 3, "apiserver-1@cd": 0}
    assert parse_after(after_text(after)) == after
    assert parse_after("") == {}
