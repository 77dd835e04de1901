"""`llmserve simulate` as it is typed."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmserve.cli import main
from llmserve.cli.command import EXIT_OK, EXIT_WRONG_USE

SIM = ["simulate", "-f", "examples/sim.yaml"]


def test_a_mix_gives_a_page_and_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    load = [*SIM, "--rate", "5", "--seconds", "10", "--tenants", "a=4", "b=1", "--slo", "ttft=1,itl=0.1"]
    assert main(load) == EXIT_OK
    page = capsys.readouterr().out
    assert main([*load, "--json"]) == EXIT_OK
    report = json.loads(capsys.readouterr().out)
    assert f"{report['served']:,} of {report['requests']:,} requests served" in page
    assert f"Within the goals: {report['good']:,} requests" in page
    assert [line["tenant"] for line in report["tenants"]] == ["a", "b"]
    assert len(report["workers"]) == 6
    assert set(report["first_token"]) == {"count", "mean", "p50", "p90", "p95", "p99", "most"}


def test_many_workers_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIM, "--seconds", "2", "--prefill", "10", "--decode", "20"]) == EXIT_OK
    page = capsys.readouterr().out
    assert "least busy of 20" in page
    assert "most busy of 10" in page


def test_a_trace_is_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    line = '{"timestamp": %d, "input_length": 600, "output_length": 5, "hash_ids": [1, %d]}\n'
    trace.write_text("".join(line % (i * 1000, i) for i in range(4)))
    assert main([*SIM, "--trace", str(trace), "--speed", "2", "--json"]) == EXIT_OK
    report = json.loads(capsys.readouterr().out)
    assert report["requests"] == report["served"] == 4
    assert 1.5 < report["seconds"] < 2.5


def test_the_plot_is_an_image_with_a_curve_for_each_tenant(tmp_path: Path) -> None:
    plot = tmp_path / "shares.svg"
    load = ["--seconds", "5", "--tenants", "a<b=1", "c=1", "--plot", str(plot)]
    assert main([*SIM, *load]) == EXIT_OK
    root = ElementTree.fromstring(plot.read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trace", "none.jsonl"], "none.jsonl: No such file"),
        (["--mix", "huge:1"], "--mix 'huge:1'"),
        (["--slo", "latency=1"], "--slo 'latency=1': write one of ttft, itl, e2e"),
        (["--seconds", "1", "--plot", "/nowhere/x.svg"], "/nowhere/x.svg: No such file"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SIM, *options]) == EXIT_WRONG_USE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_one_of_several_models_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    two = ["simulate", "-f", "examples/two-models.yaml", "--seconds", "2", "--json"]
    workers = []
    for more in ([], ["--model", "small"]):
        assert main([*two, *more]) == EXIT_OK
        workers.append([one["worker"] for one in json.loads(capsys.readouterr().out)["workers"]])
    assert workers == [["prefill-0", "decode-0", "decode-1"], ["aggregated-0"]]
    assert main([*two, "--model", "tiny"]) == EXIT_WRONG_USE
    assert "there is no model 'tiny'; there is large, small" in capsys.readouterr().err
