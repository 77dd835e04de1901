"""Python imports this at the start of each process that has this folder on PYTHONPATH (bench/metrics.py).

It counts what the process asks of prometheus_client, and at its end writes that to a file of its own in
the folder $LLMSERVE_METRIC_CALLS, as JSON.
"""

import atexit
import functools
import json
import os
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

_CALLS = (
    (Counter, "inc"),
    (Gauge, "inc"),
    (Gauge, "dec"),
    (Gauge, "set"),
    (Histogram, "observe"),
    (MetricWrapperBase, "labels"),
)


def _count_calls(folder: Path) -> None:
    tally: Tally[str] = Tally()
    for kind, name in _CALLS:
        setattr(kind, name, _counted(getattr(kind, name), tally, f"{kind.__name__}.{name}"))
    atexit.register(lambda: (folder / f"{os.getpid()}.json").write_text(json.dumps(tally)))


def _counted(call: Callable[..., Any], tally: Tally[str], name: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        tally[name] += 1
        return call(*arguments, **named)

    return counted


if "LLMSERVE_METRIC_CALLS" in os.environ:
    _count_calls(Path(os.environ["LLMSERVE_METRIC_CALLS"]))
