"""docs/pictures: each dashboard's data, of a simulated cluster under load.

python -m tests.support.pictures docs/pictures
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from llmserve.metrics.dashboards import DASHBOARDS, Dashboard
from tests.support.dashboard_picture import svg
from tests.support.observed import ask_for, observed_cluster
from tests.support.prometheus import Prometheus, prometheus

LOAD_SECONDS = 60.0


def picture(found: Prometheus, dashboard: Dashboard, seconds: float, end: float | None = None) -> str:
    """Of so many seconds until the end (Unix; None: now). Rates are of 10 s: it is scraped each second."""
    data = {
        panel.title: [
            line
            for query in panel.queries
            for line in found.lines(chosen(query.expression, "10s"), query.legend, seconds, end)
        ]
        for section in dashboard.sections
        for panel in section.panels
    }
    return svg(dashboard, data)


def chosen(expression: str, interval: str) -> str:
    """As Grafana puts its variables in, for the one cluster there is."""
    return expression.replace("$cluster", "observed").replace("$__rate_interval", interval)


def main(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as scratch,
        observed_cluster() as (cluster, page),
        prometheus(Path(scratch), page) as found,
    ):
        asyncio.run(ask_for(cluster, LOAD_SECONDS, crash="decode-1"))
        for dashboard in DASHBOARDS:
            (folder / f"{dashboard.uid}.svg").write_text(picture(found, dashboard, LOAD_SECONDS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
