"""`llmserve bench` as a user types it, on clusters of simulated engines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cluster import Cluster, running
from llmserve.rpc.wires.authority import Authority
from tests.support.certificates import make_host_certificate
from tests.support.simulated import simulated

LOAD = ("--mix", "long=600/12:1", "short=50/6:2", "--requests", "12", "--concurrency", "4", "--seed", "3")
pytestmark = pytest.mark.timeout(180)


def manifest(**sections: Any) -> dict[str, Any]:
    """The example of the smallest cluster, with a second engine. They are fast."""
    document: dict[str, Any] = simulated("aggregated.yaml")
    spec = document["spec"]
    spec["deployment"]["replicas"]["decode"] = 2
    spec["engine"]["sim"] = {"prefill_tokens_per_second": 12000, "decode_step_seconds": 0.002}
    spec |= sections
    return document


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    keys = [{"key": "gold-key", "tenant": "gold"}, {"key": "basic-key", "tenant": "basic"}]
    with running(manifest(security={"api_keys": keys})) as started:
        yield started


def bench(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmserve.cli", "bench", *arguments]
    env = {**os.environ, "GOLD": "gold-key", "BASIC": "basic-key", **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def test_the_cluster_that_runs_here_with_two_tenants(cluster: Cluster, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    done = bench(
        *("--run-dir", str(cluster.run_dir), *LOAD, "--turns", "2", "--shared-prefix", "64", "--json"),
        *("--tenants", "gold:3=@GOLD", "basic=@BASIC", "--weights", "gold=3", "--slo", "ttft=30"),
        *("--html", str(html)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["requests"], found["served"], found["good"], found["failures"]) == (24, 24, 24, [])
    assert found["about"]["prompts"] == "token ids"
    assert not [note for note in found["notes"] if "late" not in note], "lengths are exact"
    tenants = {one["name"]: one for one in found["tenants"]}
    assert tenants["gold"]["served"] > tenants["basic"]["served"] > 0
    kinds = {one["name"]: one for one in found["kinds"]}
    assert kinds["long"]["output_tokens"] == 12 * kinds["long"]["served"]
    assert found["cached_tokens"] > 0, "second turns begin with what is known"
    assert 0 < found["ttft"]["p50"] < found["e2e"]["p50"]
    assert html.read_text().count("<svg") == 7


def test_a_trace_in_the_open_loop(cluster: Cluster, tmp_path: Path) -> None:
    trace = tmp_path / "burst.csv"
    rows = "".join(f"{second},GPT-4,100,5,105,API log\n" for second in range(0, 20, 2))
    trace.write_text(f"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n{rows}")
    where = ("--url", f"{cluster.url}/v1", "--api-key", "gold-key", "--trace", str(trace))
    done = bench(*where, "--speed", "10", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["served"], found["prompt_tokens"], found["output_tokens"]) == (10, 1000, 50)
    assert found["seconds"] >= 1.8
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n")
    done = bench(*where)
    assert done.returncode == 2
    assert f"{trace}:2: TIMESTAMP is 'now'" in done.stderr


def test_chat_for_people(cluster: Cluster) -> None:
    done = bench("--url", cluster.url, "--api-key", "@GOLD", *LOAD, "--prompts", "chat")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 requests served" in done.stdout
    assert "prompts are chat: their lengths are approximate" in done.stdout


def test_ctrl_c_shows_what_has_ended(cluster: Cluster) -> None:
    command = (sys.executable, "-m", "llmserve.cli", "bench", "--url", cluster.url, "--api-key", "gold-key")
    with subprocess.Popen(
        [*command, "--mix", "50/5:1", "--warmup", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            _until_it_serves(cluster)
            process.send_signal(signal.SIGINT)
            found = json.loads(process.communicate(timeout=30)[0])
        finally:
            process.kill()
    assert process.returncode == 0
    assert found["served"] > 0
    assert "the run was stopped early" in found["notes"]


def _until_it_serves(cluster: Cluster) -> None:
    """More than the probe asks for."""
    before, deadline = _served(cluster), time.monotonic() + 60
    while _served(cluster) < before + 20:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _served(cluster: Cluster) -> float:
    name = next(role["name"] for role in cluster.state()["roles"] if role["http"])
    samples = cluster.metrics(name)
    return sum(value for name, value in samples.items() if name.startswith("apiserver_requests_total"))


def test_a_wrong_key_a_wrong_model_and_nobody_there(cluster: Cluster) -> None:
    for arguments, said in (
        (("--url", cluster.url, "--model", "m", "--api-key", "wrong"), "refuses the key"),
        (("--url", cluster.url, "--model", "m", "--api-key", "gold-key"), "`m` does not exist"),
        (("--url", "http://127.0.0.1:1"), "127.0.0.1:1"),
    ):
        done = bench(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_compare_starts_both_and_gives_a_verdict(tmp_path: Path) -> None:
    """Over HTTPS, with a certificate that only the manifest knows, and that is beside it."""
    make_host_certificate(Authority.make("llmserve", days=2.0), tmp_path)
    tls = {"certificate": "host.crt", "key": "host.key"}
    path = tmp_path / "llmserve.yaml"
    path.write_text(yaml.safe_dump(manifest(security={"tls": tls})))
    html = tmp_path / "page.html"
    done = bench("compare", "agg", "-f", str(path), *LOAD, "--rounds", "1", "--json", "--html", str(html))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["base"], found["other"]) == ("agg", "disagg")
    assert "agg" in found["verdict"]
    assert {name: report["served"] for name, report in found["rounds"][0].items()} == {
        "agg": 12,
        "disagg": 12,
    }
    assert all(one["low"] <= one["high"] for one in found["contrasts"])
    page = html.read_text()
    assert page.count("<svg") == 5
    assert escape(found["verdict"]) in page


def test_a_cluster_that_does_not_start_is_shown_in_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "llmserve.yaml"
    path.write_text(yaml.safe_dump(manifest(models={"primary": {"source": "dir:/no/such/model"}})))
    done = bench("compare", "disagg", "-f", str(path), *LOAD)
    assert done.returncode == 1
    assert "/no/such/model" in done.stderr
