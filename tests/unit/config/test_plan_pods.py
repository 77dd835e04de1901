"""Pods run what the local runner starts: the same modules, flags and variables at other addresses."""

from pathlib import Path

import pytest

from llmserve.config.load import load_manifest, parse_manifest
from llmserve.config.plan import plan_local
from llmserve.config.plan_pods import GRPC_PORT, METRICS_PORT, plan_pods, service_name
from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest

ROOT = Path(__file__).parents[3]
PLACES = ("--name", "--listen", "--http", "--router", "--kvmanager", "--metrics-port", "--drain-seconds")


def by_role(manifest: Manifest) -> dict[ProcessRole, ProcessSpec]:
    return {one.role: one.process for one in plan_pods(manifest)}


def without_places(spec: ProcessSpec) -> list[str]:
    """The command without names, addresses, and how long a stop may take."""
    command = spec.command("manifest", "run")
    where = [command.index(option) for option in PLACES if option in command]
    return [text for index, text in enumerate(command) if index not in where and index - 1 not in where]


@pytest.mark.parametrize("name", ["llmserve.yaml", "examples/sim.yaml", "examples/gpu.yaml"])
def test_a_pod_runs_what_runs_here(name: str) -> None:
    manifest = load_manifest(ROOT / name)
    local = plan_local(manifest, (), iter(range(20000, 21000)).__next__).processes
    pods = by_role(manifest)
    assert {spec.role for spec in local} == pods.keys()
    for spec in local:
        pod = pods[spec.role]
        assert without_places(pod) == without_places(spec)
        assert spec.env.items() <= pod.env.items()


def test_addresses_are_those_of_pods_and_services() -> None:
    pods = by_role(load_manifest(ROOT / "llmserve.yaml"))
    decode = pods[ProcessRole.DECODE]
    assert (decode.name, decode.listen) == ("$(POD_NAME)", f"$(POD_IP):{GRPC_PORT}")
    assert decode.routers == ("llmserve-router:7100",)
    assert decode.kvmanagers == ("llmserve-kvmanager-0.llmserve-kvmanager:7100",)
    assert decode.metrics_port == METRICS_PORT
    assert pods[ProcessRole.APISERVER].http == "$(POD_IP):8000"


def test_a_pod_is_drained_for_as_long_as_a_request_may_take() -> None:
    pods = by_role(load_manifest(ROOT / "llmserve.yaml"))
    drains = {role: spec.drain_seconds for role, spec in pods.items()}
    assert drains[ProcessRole.DECODE] == drains[ProcessRole.APISERVER] == 600.0
    assert drains[ProcessRole.ROUTER] is None


def test_single_process_is_about_this_machine() -> None:
    pods = by_role(load_manifest(ROOT / "examples" / "aggregated.yaml"))
    assert ProcessRole.CONTROL not in pods
    assert ProcessRole.AGGREGATED in pods
    assert pods[ProcessRole.AGGREGATED].env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


_TWO = """
kind: LLMServe
engine: {env: [{name: FOR_ALL, value: "1"}]}
models:
- {source: hub:a/Large.v1, engine: {env: [{name: MINE, value: "1"}]}}
- {source: hub:a/small, disaggregated: false}
"""


def test_workers_of_each_model_have_pods_of_their_own() -> None:
    pods = plan_pods(parse_manifest(_TWO, "m.yaml"))
    assert [(one.role.value, one.model, one.process.model) for one in pods] == [
        ("kvmanager", "", ""),
        ("router", "", ""),
        ("prefill", "large-v1", "Large.v1"),
        ("decode", "large-v1", "Large.v1"),
        ("aggregated", "small", "small"),
        ("apiserver", "", ""),
    ]
    assert [one.manifest.model.served_name for one in pods if one.model] == ["Large.v1"] * 2 + ["small"]
    assert len(pods[-1].manifest.served) == 2
    env = {one.process.env.get("MINE") for one in pods if one.model == "large-v1"}
    assert env == {"1"}
    assert "MINE" not in pods[-1].process.env
    assert pods[-1].process.env["FOR_ALL"] == "1"


def test_names_have_the_model_only_where_there_are_several() -> None:
    assert service_name("demo", ProcessRole.DECODE) == "demo-decode"
    assert service_name("demo", ProcessRole.DECODE, "small") == "demo-small-decode"
