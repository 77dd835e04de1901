"""docs/kubernetes.md makes the metrics that the autoscalers ask for out of metrics that we have."""

import re
from pathlib import Path

import yaml

from llmserve.k8s.render.workloads import QUEUE_SECONDS, TOKENS_SHARE, WAITING_REQUESTS

DOCS = Path(__file__).parents[3] / "docs"
_SUFFIX = re.compile(r"_(sum|count|bucket)$")


def rules() -> list[dict[str, object]]:
    block = re.search(r"```yaml\n(rules:.*?)```", (DOCS / "kubernetes.md").read_text(), re.DOTALL)
    assert block is not None
    found = yaml.safe_load(block[1])["rules"]
    return [*found["custom"], *found["external"]]


def test_every_metric_of_an_autoscaler_has_a_rule() -> None:
    named = {rule["name"]["as"] for rule in rules() if isinstance(rule.get("name"), dict)}  # type: ignore[index]
    plain = {str(rule["seriesQuery"]).partition("{")[0] for rule in rules() if "name" not in rule}
    assert named | plain == {QUEUE_SECONDS, TOKENS_SHARE, WAITING_REQUESTS}


def test_the_rules_are_made_of_our_metrics() -> None:
    ours = (DOCS / "metrics.md").read_text()
    for rule in rules():
        text = f"{rule['seriesQuery']} {rule['metricsQuery']}"
        for series in re.findall(r"\b([a-z]+(?:_[a-z]+)+)\{", text):
            assert f"`{_SUFFIX.sub('', series)}`" in ours, series
