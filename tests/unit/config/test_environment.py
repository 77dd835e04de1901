"""Which variables of somebody's shell reach a process of the cluster."""

from pathlib import Path
from typing import Any

import pytest

from llmserve.config.environment import GIVEN, engine_variables, inherited, note
from llmserve.config.load import parse_manifest
from llmserve.config.plan import plan_local
from llmserve.config.plan_pods import plan_pods
from llmserve.config.schema import Manifest
from llmserve.runner.environment import RunPaths, role_command

BASE: dict[str, Any] = {"kind": "LLMServe", "models": {"primary": {"source": "hub:a/b", "name": "m"}}}


def manifest(**sections: Any) -> Manifest:
    return Manifest.model_validate(BASE | sections)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "PYTHONPATH", "LANG", "LC_ALL", "LD_PRELOAD", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"),
        *("https_proxy", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
        *("CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "UCX_TLS", "NIXL_PLUGIN_DIR"),
        *("AWS_ACCESS_KEY_ID", "HF_TOKEN", "HF_HOME", "OTEL_EXPORTER_OTLP_HEADERS"),
        *("LLMSERVE_CACHE_DIR", "LLMSERVE_FAULTS", "TORCHINDUCTOR_CACHE_DIR"),
    ],
)
def test_what_is_about_this_machine_and_who_may_what_is_passed_on(name: str) -> None:
    assert inherited({name: "x"}, manifest()).kept == {name: "x"}


@pytest.mark.parametrize(
    "name",
    [
        *("VLLM_API_KEY", "VLLM_PORT", "VLLM_ATTENTION_BACKEND", "VLLM_CPU_OMP_THREADS_BIND"),
        *("TORCH_LOGS", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "PYTHONHASHSEED", "SAGEMAKER_MODEL"),
    ],
)
def test_a_setting_is_not_passed_on_and_is_named(name: str) -> None:
    found = inherited({name: "x", "PATH": "p"}, manifest())
    assert found.kept == {"PATH": "p"}
    assert found.ignored == (name,)
    assert name in note(found.ignored)
    assert "engine.env" in note(found.ignored)


def test_what_any_shell_has_is_dropped_in_silence() -> None:
    found = inherited({"PS1": "$", "OLDPWD": "/", "SSH_CLIENT": "x", "EDITOR": "vi"}, manifest())
    assert (found.kept, found.ignored) == ({}, ())


def test_variables_that_the_manifest_names_are_passed_on() -> None:
    told = manifest(
        security={"api_keys": [{"tenant": "a", "key_env": "TEAM_KEY"}]},
        state={"backend": "redis", "redis": {"url": "redis://h/0", "password_env": "STATE_PASSWORD"}},
        storageClasses=[
            {
                "name": "ram",
                "tier": "dram",
                "capacity_gb": 1.0,
                "format": {"encrypt": [{"id": "k", "env": "KV_KEY"}]},
            }
        ],
    )
    base = {"TEAM_KEY": "1", "STATE_PASSWORD": "2", "KV_KEY": "3", "OTHER_KEY": "4"}
    assert inherited(base, told).kept == {"TEAM_KEY": "1", "STATE_PASSWORD": "2", "KV_KEY": "3"}


def test_engine_env_reaches_the_processes_in_which_vllm_runs() -> None:
    told = manifest(engine={"env": [{"name": "VLLM_ATTENTION_BACKEND", "value": "TORCH_SDPA"}]})
    assert engine_variables(told) == {"VLLM_ATTENTION_BACKEND": "TORCH_SDPA"}
    processes = plan_local(told, (0, 1), iter(range(5000, 6000)).__next__).processes
    have = {process.name for process in processes if "VLLM_ATTENTION_BACKEND" in process.env}
    assert have == {"apiserver-0", "prefill-0", "decode-0"}
    pods = plan_pods(told)
    assert {one.role for one in pods if "VLLM_ATTENTION_BACKEND" in one.process.env} == {
        *("apiserver", "prefill", "decode")
    }


def test_a_role_drops_nothing_of_what_it_was_started_with() -> None:
    """The role sorts once more, for those that are started by hand."""
    paths = RunPaths(Path("/m.yaml"), Path("/run"), Path("/logs"), Path("/temp"))
    told = manifest(engine={"device": "cpu", "env": [{"name": "VLLM_X", "value": "1"}]})
    specs = [
        *plan_local(told, (0, 1), iter(range(5000, 6000)).__next__).processes,
        *(one.process for one in plan_pods(told)),
    ]
    for spec in specs:
        env = role_command(spec, paths, {}, "c", {"PATH": "p"}).env
        again = inherited(env, told, GIVEN)
        assert again.kept == env


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("{name: VLLM_API_KEY, value: x}", "security.api_keys"),
        ("{name: CUDA_VISIBLE_DEVICES, value: '0'}", "divided"),
        ("{name: PYTHONHASHSEED, value: '0'}", "identity"),
        ("{name: LLMSERVE_FAULTS, value: x}", "LLMServe itself"),
        ("{name: A, value: x}, {name: A, value: y}", "twice"),
        ("{name: A B, value: x}", "form"),
        ("{name: A, value: 1}", "text"),
    ],
)
def test_what_engine_env_may_not_say(entry: str, why: str) -> None:
    text = f"kind: LLMServe\nmodels: {{primary: {{source: 'hub:a/b'}}}}\nengine:\n  env: [{entry}]\n"
    with pytest.raises(Exception, match=why) as raised:
        parse_manifest(text, "m.yaml")
    assert "m.yaml:4" in str(raised.value)
