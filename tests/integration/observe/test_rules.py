"""deploy/prometheus is what Prometheus takes, and the alerts do what their tests say."""

import subprocess
from pathlib import Path

import pytest
import yaml

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
    """That it comes, and that it does not."""
    groups = yaml.safe_load((FOLDER / "llmserve.rules.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    tests = [
        case
        for path in (FOLDER / "tests").glob("*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert alerts
    assert {case["alertname"] for case in tests if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in tests if not case.get("exp_alerts")} == alerts
