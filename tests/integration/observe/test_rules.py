"""deploy/prometheus is what Prometheus takes, and the alerts do what their tests say."""

import subprocess
from pathlib import Path

import pytest

from tests.support.prometheus import ROOT, program

FOLDER = ROOT / "deploy" / "prometheus"
pytestmark = pytest.mark.timeout(60)


def _promtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_the_configuration_is_valid(name: str) -> None:
    assert "SUCCESS" in _promtool("check", "config", name)


@pytest.mark.parametrize("path", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_each_alert_comes_with_its_fault_and_not_without(path: Path) -> None:
    assert "SUCCESS" in _promtool("test", "rules", str(path))


def test_each_alert_has_a_test() -> None:
    alerts = [
        line.split()[-1]
        for line in (FOLDER / "llmserve.rules.yml").read_text().splitlines()
        if "- alert:" in line
    ]
    tested = "".join(path.read_text() for path in (FOLDER / "tests").glob("*.yml"))
    assert alerts
    assert [name for name in alerts if f"alertname: {name}" not in tested] == []
