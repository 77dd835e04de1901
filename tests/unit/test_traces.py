"""Traces of files, and what is wrong in them."""

from pathlib import Path

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.traces import TracedRequest, at_speed, read_trace

MOONCAKE = '{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]}'
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def read(tmp_path: Path, name: str, text: str) -> list[TracedRequest]:
    path = tmp_path / name
    path.write_text(text)
    return read_trace(path, lambda: DEFAULT_TENANT)


def test_mooncake_lines_in_the_order_of_arrival_from_the_first_one_on(tmp_path: Path) -> None:
    early = '{"timestamp": 1000, "input_length": 10, "output_length": 2, "tenant": "t", "max_tokens": 9}'
    first, second = read(tmp_path, "trace.jsonl", f"{MOONCAKE}\n\n{early}\n")
    assert first == TracedRequest(0.0, 10, 2, TenantId("t"), 9)
    assert second == TracedRequest(2.0, 600, 5, prefix_names=(7, 8), run_tokens=512)


def test_azure_rows_with_seven_digits_of_a_second_or_a_zone(tmp_path: Path) -> None:
    rows = "2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04.4799600+00:00,9,1\n"
    first, second = read(tmp_path, "azure.csv", AZURE + rows)
    assert (first.arrived_at, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrived_at == pytest.approx(0.5)


def test_burstgpt_rows_but_not_those_that_failed_there(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,log\n45,GPT-4,1087,0,1087,log\n118.5,GPT-4,417,276,693,log\n"
    first, second = read(tmp_path, "burst.csv", BURSTGPT + rows)
    assert (first.arrived_at, first.prompt_tokens, first.output_tokens) == (0.0, 472, 18)
    assert (second.arrived_at, second.prompt_tokens, second.output_tokens) == (113.5, 417, 276)


def test_a_trace_is_played_faster() -> None:
    assert at_speed([TracedRequest(4.0, 1, 1)], 2.0)[0].arrived_at == 2.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", f"{MOONCAKE}\nno", "t.jsonl:2: not JSON"),
        ("t.jsonl", "[]", "t.jsonl:1: not a JSON object"),
        ("t.jsonl", '{"timestamp": 1, "output_length": 1}', "t.jsonl:1: input_length is missing"),
        ("t.jsonl", MOONCAKE.replace("600", "0"), "t.jsonl:1: input_length is 0, not a number from 1 on"),
        ("t.jsonl", MOONCAKE.replace("3000", '"x"'), "t.jsonl:1: timestamp is 'x', not a number"),
        ("t.jsonl", MOONCAKE.replace("[7, 8]", '"7"'), "t.jsonl:1: hash_ids is not a list of integers"),
        ("t.jsonl", "\n", "t.jsonl: no requests in it"),
        ("t.csv", "TIMESTAMP,ContextTokens\n", "t.csv:1: no column GeneratedTokens"),
        ("t.csv", f"{AZURE}yesterday,1,1\n", "t.csv:2: TIMESTAMP is 'yesterday', not a date and time"),
        ("t.csv", f"{AZURE}2023-11-16 18:17:03,1,many\n", "t.csv:2: 'many' is not a number of tokens"),
        ("t.csv", "Timestamp,Request tokens\n1,2\n", "t.csv:1: no column Response tokens"),
        ("t.csv", f"{BURSTGPT}-1,GPT-4,1,1,2,API log\n", "t.csv:2: Timestamp is '-1', not seconds"),
        ("t.csv", f"{BURSTGPT}soon,GPT-4,1,1,2,API log\n", "t.csv:2: Timestamp is 'soon', not seconds"),
        ("t.csv", f"{BURSTGPT}1,GPT-4,x,1,2,API log\n", "t.csv:2: 'x' is not a number of tokens"),
        ("t.csv", f"{AZURE}2023-11-16 18:17:03,1\n", "t.csv:2: None is not a number of tokens"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path, name, text)
    assert message in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"none\.jsonl: No such file"):
        read_trace(tmp_path / "none.jsonl", lambda: DEFAULT_TENANT)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        read_trace(tmp_path / "t.jsonl", lambda: DEFAULT_TENANT)
