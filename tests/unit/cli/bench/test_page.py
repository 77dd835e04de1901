"""What `llmserve bench` prints."""

from typing import Any, cast

from rich.console import Console, RenderableType

from llmserve.cli.bench.page import contrast_page, progress, report_page
from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.comparison import Contrast
from llmserve.loadgen.drive import Drive
from llmserve.loadgen.report import About, Slo, make_report
from tests.unit.loadgen.records import failed, served


def shown(page: RenderableType) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(page)
    return captured.get()


def report(records: list[LoadRecord], slo: str = "") -> str:
    about = About("http://x", "m", "a load", 7, "text", "2026-01-01T00:00:00+00:00", ("lengths are so-so",))
    return shown(report_page(make_report(records, about, Slo.parse(slo), {})))


def test_a_report_has_what_was_asked_for_and_what_went_wrong() -> None:
    text = report([served(), served(kind="[/long]"), failed("[full] up")], "ttft=1")
    assert "2 of 3 requests served" in text
    assert "Good: 2 of 3 met the limits" in text
    assert "time to first token  500.0" in text
    assert "Failed: 1 x HTTP 429: [full] up" in text
    assert "[/long]" in text
    assert "Note: lengths are so-so" in text
    assert "Fairness" not in text


def test_first_uses_of_adapters_have_a_row_of_their_own() -> None:
    text = report([served(0.0, 0.5, adapter="x"), served(5.0, 0.1, adapter="x")])
    assert "first use" in text
    assert "later use" in text
    assert "ADAPTER" not in report([served()])


def test_fairness_is_said_or_why_not() -> None:
    def crowd(tenant: str) -> list[LoadRecord]:
        return [served(0.0, 9.5, (), tenant=tenant), served(0.0, 2.5, (), tenant=tenant)]

    assert "Jain index 1.000" in report([*crowd("a"), *crowd("b")])
    assert "shares mean nothing" in report([served(tenant="a"), served(tenant="b")])


def test_a_contrast_is_in_its_unit_with_its_interval() -> None:
    text = shown(
        contrast_page(
            [
                Contrast("ttft", "s", 0.2, 0.1, 0.5, 0.4, 0.6, less_is_better=True),
                Contrast("tokens", "/s", 10.0, 9.9, 0.99, 0.9, 1.1, less_is_better=False),
            ],
            "agg",
            "disagg",
        )
    )
    assert "200.0 ms" in text
    assert "0.40 to 0.60" in text
    assert "better" in text
    assert "no difference shown" in text


def test_progress_in_a_line() -> None:
    drive = Drive(cast("Any", None), cast("Any", None))
    assert "0 ended   0 running" in progress(drive)
    drive.records += [served(), failed()]
    drive.failed = 1
    assert "2 ended" in progress(drive)
    assert "ttft 500 ms   1 failed" in progress(drive)
