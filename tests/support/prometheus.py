"""A real Prometheus (Debian's package `prometheus`), which scrapes a running cluster each second."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.ports import free_port
from tests.support.dashboard_picture import Line

ROOT = Path(__file__).parents[2]
READY_SECONDS = 30.0


def program(name: str) -> str:
    """Where it is. CI has it (.ci/run); elsewhere tests that need it are skipped, and say so."""
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is not on the path: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query. at: seconds, Unix; None: now."""
        when = {} if at is None else {"time": f"{at}"}
        found: list[dict[str, Any]] = self._get("query", query=expression, **when)["result"]
        return found

    def lines(self, expression: str, legend: str, seconds: float, end: float | None = None) -> list[Line]:
        """Of so many seconds until the end (Unix; None: now), a point a second."""
        end = time.time() if end is None else end
        answer = self._get("query_range", query=expression, start=f"{end - seconds}", end=f"{end}", step="1")
        return [
            Line(
                re.sub(r"\{\{(\w+)\}\}", lambda found, row=row: row["metric"].get(found[1], ""), legend),  # type: ignore[misc]
                [(float(at), float(value)) for at, value in row["values"]],
            )
            for row in answer["result"]
        ]

    def alerts(self) -> set[str]:
        """Names of those that fire."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}

    def fired(self) -> set[str]:
        """Names of those that fire or did in the last minutes."""
        rows = self.query('max_over_time(ALERTS{alertstate="firing"}[5m])')
        return {row["metric"]["alertname"] for row in rows}

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """With the committed configuration and rules, but that it scrapes each second and alerts come soon:
    without `for`, and what is to hold all through a window of minutes ([10m:30s]) needs to hold for 5 s."""
    port = free_port()
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "llmserve.rules.yml").write_text(yaml.safe_dump(_soon()))
    flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command = [program("prometheus"), *flags, f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        _wait(found, process, folder)
        yield found
    finally:
        process.kill()
        process.wait()


def _soon() -> Any:
    text = (ROOT / "deploy" / "prometheus" / "llmserve.rules.yml").read_text()
    rules = yaml.safe_load(re.sub(r"\[\d+m:30s\]", "[5s:1s]", text))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    return rules


def _wait(found: Prometheus, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        with suppress(OSError):
            if found.query("up == 1"):
                return
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail((folder / "prometheus.log").read_text()[-2000:])
        time.sleep(0.1)
