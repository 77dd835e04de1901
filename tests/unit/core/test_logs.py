"""Lines of the log: for people, as JSON, and whose request they are about."""

import asyncio
import json
import logging
import logging.config
from typing import Any

import pytest

from llmserve.core.logs import (
    HumanFormatter,
    JsonFormatter,
    KnownFailures,
    RequestNames,
    ScarceRecords,
    ScarceWarnings,
    levels_kept,
    name_request,
    named,
    vllm_logging,
)

NAMES = RequestNames("chatcmpl-7", "4bf92f3577b34da6a3ce929d0e0e4736")


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("llmserve.x", logging.WARNING, __file__, 1, message, args, told)


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter("decode-0").format(made)
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_a_json_line_has_who_what_and_when() -> None:
    made = record("took %d ms, %s", 7, 'he said "so"\n')
    made.created = 1.5
    assert as_json(made) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warning",
        "process": "decode-0",
        "pid": made.process,
        "logger": "llmserve.x",
        "message": 'took 7 ms, he said "so"\n',
    }


def test_an_exception_fits_into_its_line() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError as error:
        line = as_json(record("failed", error=error))
    assert line["error"] == "ValueError"
    assert line["stack"].startswith("Traceback")
    assert line["stack"].endswith("no\nway")


def test_what_json_cannot_say_is_said_as_text() -> None:
    assert as_json(record("got %s", b"\xff"))["message"] == r"got b'\xff'"
    assert as_json(record("lone \ud800"))["message"] == "lone \ud800"


def test_a_line_names_the_request_of_its_context() -> None:
    with named(NAMES):
        line = as_json(record("x"))
        human = HumanFormatter("decode-0").format(record("x"))
    assert (line["request_id"], line["trace_id"]) == (NAMES.request_id, NAMES.trace_id)
    assert human.endswith(f"WARNING decode-0 llmserve.x: x request=chatcmpl-7 trace={NAMES.trace_id}")
    assert "request_id" not in as_json(record("x"))


def test_without_tracing_there_is_no_trace() -> None:
    with named(RequestNames("r")):
        assert "trace_id" not in as_json(record("x"))
        assert HumanFormatter("p").format(record("x")).endswith("x request=r")


def test_people_do_not_read_a_name_twice() -> None:
    with named(RequestNames("r-1")):
        line = HumanFormatter("100%").format(record("request %s completed", "r-1"))
    assert line.endswith("WARNING 100% llmserve.x: request r-1 completed")


async def test_a_task_has_names_of_its_own() -> None:
    async def run(name: str) -> str:
        name_request(RequestNames(name))
        await asyncio.sleep(0)
        return str(as_json(record("x"))["request_id"])

    assert [*await asyncio.gather(run("a"), run("b"))] == ["a", "b"]


def spoil_levels() -> None:
    with levels_kept():
        for one in (logging.getLogger(), *logging.getLogger().handlers):
            one.setLevel(logging.ERROR)  # type: ignore[attr-defined]  # both have it
        raise ZeroDivisionError


def test_levels_are_as_before_whatever_is_done_to_them() -> None:
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    before = root.level
    try:
        with pytest.raises(ZeroDivisionError):
            spoil_levels()
        assert (root.level, handler.level) == (before, logging.NOTSET)
    finally:
        root.removeHandler(handler)


def test_vllm_logs_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        logging.config.dictConfig(json.loads(json.dumps(vllm_logging("decode-0", "INFO"))))
        logging.getLogger("vllm.engine").info("ready")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["logger"], json.loads(line)["process"]) == ("vllm.engine", "decode-0")


FORGED = "a\n2026-01-01 00:00:00,000 INFO router llmserve: forged\x1b[31m\x00\r\u202e\u2028\ud800"


def test_no_message_reads_as_a_record_of_another_process() -> None:
    first, *others = HumanFormatter("apiserver-0").format(record("id %s", FORGED)).split("\n")
    assert "apiserver-0" in first
    assert [line[:4] for line in others] == ["    "]
    assert others[0].endswith(r"forged\u001b[31m\u0000\u000d\u202e\u2028\ud800")


def test_nor_does_an_exception() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        text = HumanFormatter("apiserver-0").format(record("failed", error=error))
    _, *others = text.split("\n")
    assert all(line.startswith("    ") for line in others)
    assert "\x1b" not in text
    text.encode()


def test_json_has_no_raw_character_that_moves_a_terminal() -> None:
    made = record("id %s", FORGED + "\x7f\x9b")
    line = JsonFormatter("apiserver-0").format(made)
    line.encode()
    assert not {"\n", "\r", "\x1b", "\x00", "\x7f", "\x9b", "\u202e"} & set(line)
    assert json.loads(line)["message"] == f"id {FORGED}\x7f\x9b"


def test_a_known_failure_is_a_warning_in_one_line() -> None:
    known = KnownFailures("llmserve.x", lambda error: isinstance(error, ValueError))
    try:
        raise ValueError("too long\x1b")
    except ValueError as error:
        made = record("Error in the stream", error=error)
    made.levelno, made.levelname = logging.ERROR, "ERROR"
    assert known.filter(made)
    line = HumanFormatter("p").format(made)
    assert line.endswith(r"WARNING p llmserve.x: Error in the stream too long\u001b")
    defect = record("failed", error=KeyError("x"))
    assert known.filter(defect)
    assert "KeyError" in HumanFormatter("p").format(defect)
    of_another = KnownFailures("vllm", lambda error: True)
    assert of_another.filter(defect)
    assert "KeyError" in HumanFormatter("p").format(defect)


def test_warnings_that_anybody_can_cause_are_one_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    scarce = ScarceWarnings(logging.getLogger("llmserve.x"), lambda: now)
    for second in (100.0, 100.5, 100.9, 101.0, 101.9, 102.5, 104.0):
        now = second
        scarce.warning("a stranger at %s", second)
    assert caplog.messages == [
        "a stranger at 100.0",
        "a stranger at 101.0 (and 2 such lines before)",
        "a stranger at 102.5 (and 1 such lines before)",
        "a stranger at 104.0",
    ]


def test_so_are_those_that_a_library_writes() -> None:
    now = 100.0
    scarce = ScarceRecords(lambda: now)
    shown = []
    for second in (100.0, 100.5, 100.9, 101.0):
        now = second
        made = record("no HTTP at %s", second)
        if scarce.filter(made):
            shown.append(made.getMessage())
    assert shown == ["no HTTP at 100.0", "no HTTP at 101.0 (and 2 such lines before)"]
    for _ in range(2):
        defect = record("a defect")
        defect.levelno = logging.ERROR
        assert scarce.filter(defect)
