"""Manifests of small simulated clusters, and a run of requests against one."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmserve.config.schema import Manifest
from llmserve.simulate.report import Goals, SimReport
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest

MakeShape = Callable[..., ClusterShape]
Simulate = Callable[..., SimReport]

_SIM = {"prefill_tokens_per_second": 1000.0, "decode_step_seconds": 0.01, "blocks": 256}


@pytest.fixture
def make_shape() -> MakeShape:
    """Sections of the manifest by name; `sim` is engine.sim."""

    def make(
        *, over: Overrides | None = None, sim: dict[str, Any] | None = None, **sections: Any
    ) -> ClusterShape:
        engine = {"kind": "sim", "sim": {**_SIM, **(sim or {})}, **sections.pop("engine", {})}
        models = {"primary": {"source": "dir:/nowhere", "name": "m"}}
        manifest = Manifest.model_validate(
            {"kind": "LLMServe", "models": models, "engine": engine, **sections}
        )
        return ClusterShape.of(manifest, over or Overrides())

    return make


@pytest.fixture
def simulate() -> Simulate:
    def run(shape: ClusterShape, requests: Sequence[TracedRequest], goals: Goals | None = None) -> SimReport:
        simulation = Simulation(shape, requests)
        simulation.run()
        simulation.check_integrity()
        return simulation.report(goals or Goals())

    return run
