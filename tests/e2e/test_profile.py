"""A profile of an engine that computes: what `llmserve profile` writes and prints while it answers."""

import re
import threading
from pathlib import Path

import httpx
import pytest

from bench.cluster import Cluster
from llmserve.cli import main

ANSWER = {
    "model": "SmolLM2-135M-Instruct",
    "prompt": "Once upon a time",
    "max_tokens": 200,
    "ignore_eos": True,
}


def test_a_worker_is_recorded_while_it_answers(
    cluster: Cluster, http: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(http.post("/v1/completions", json=ANSWER)))
    asking.start()
    run_dir = str(cluster.run_dir)
    code = main(["profile", "decode-0", "--seconds", "1", "--out", str(tmp_path), "--run-dir", run_dir])
    asking.join()
    assert code == 0
    (trace,) = tmp_path.iterdir()
    assert re.fullmatch(r"decode-0_rank0\.\d+\.pt\.trace\.json\.gz", trace.name)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"the CPU computed for \d+\.\d\d s; most of it", lines[1])
    assert any("_C::onednn_mm" in line for line in lines), lines
    assert lines[-1] == f"written: {trace}"
    (answer,) = answers
    assert answer.json()["usage"]["completion_tokens"] == ANSWER["max_tokens"]
