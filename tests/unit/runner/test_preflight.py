"""What would be refused at the start here: the facts are this machine's, and those that a test makes up."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.plan import LocalPlan, plan_local
from llmserve.config.refusals import Parsers
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError
from llmserve.runner import preflight
from llmserve.runner.machine import HeldPorts
from llmserve.runner.up import check_here

Write = Callable[..., Path]
_SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs, and with a vLLM of two parsers."""
    monkeypatch.setattr(preflight, "available_gpus", tuple)
    monkeypatch.setattr(preflight, "parsers_here", lambda: Parsers(("hermes",), ("qwen3",)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(json.dumps(_SMALL))
    return folder


@pytest.fixture
def write(tmp_path: Path, model: Path) -> Write:
    """A manifest whose sections start at line 3."""

    def written(text: str = "", source: str = "") -> Path:
        path = tmp_path / "m.yaml"
        head = f"kind: LLMServe\nmodels: {{primary: {{source: '{source or f'dir:{model}'}'}}}}\n"
        path.write_text(head + text)
        return path

    return written


def _checked(path: Path) -> LocalPlan:
    with HeldPorts() as ports:
        return check_here(_read(path), path, ports)


def _read(path: Path) -> Manifest:
    return parse_manifest(path.read_text(), str(path))


def _refused(path: Path) -> list[str]:
    with pytest.raises(ManifestError) as failed:
        _checked(path)
    return [line.removeprefix(f"{path}:") for line in failed.value.message.splitlines()]


def test_what_can_be_started_has_a_plan(write: Write) -> None:
    path = write("engine: {device: cpu, tool_call_parser: hermes}\n")
    assert [one.name for one in _checked(path).processes if one.role.is_worker] == [
        "prefill-0",
        "decode-0",
    ]


def test_a_model_whose_kv_cannot_be_handed_over(write: Write, model: Path) -> None:
    (model / "config.json").write_text(json.dumps(_SMALL | {"mamba_d_state": 16}))
    (found,) = _refused(write())
    assert found.startswith("2: models.primary.source: models with layers of the kind state space are not")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "security: {api_keys: [{tenant: a, key_env: NOT_SET_HERE}]}",
            "3: security.api_keys[0].key_env: the env",
        ),
        (
            "engine: {tool_call_parser: herms}",
            "3: engine.tool_call_parser: vLLM has no parser 'herms'; did you",
        ),
        (
            "deployment: {mode: k8s}\nsecurity: {mtls: {}}",  # with --mode local
            "4: security.mtls.directory: must be set on one machine",
        ),
        ("engine: {reasoning_parser: none}", "3: engine.reasoning_parser: vLLM has no parser 'none'"),
        (
            "engine:\n  max_model_len: 513",
            "4: engine.max_model_len: the model was made for at most 512 tokens",
        ),
        ("kv_cache: {memory_gb: 0.0001}", "3: kv_cache.memory_gb: one request of 512 tokens takes"),
        (
            "deployment: {local: {cores: [4095]}}",
            "3: deployment.local.cores: core 4095 is not available here",
        ),
        (
            "state: {backend: redis, redis: {url: 'redis://h:1', password_env: NOT_SET_HERE}}",
            "3: state.redis.password_env: the environment variable NOT_SET_HERE is not set",
        ),
        (
            "storageClasses:\n  - {name: a, tier: dram, capacity_gb: 0.01}\n"
            "  - name: b\n    tier: nvme\n    capacity_gb: 1\n    location: /kv\n"
            "    format: {encrypt: [{id: k, env: NOT_SET_HERE}]}",
            "9: storageClasses[1].format.encrypt[0]: encryption key 'k': $NOT_SET_HERE is not set",
        ),
    ],
)
def test_what_a_role_would_refuse(write: Write, text: str, line: str) -> None:
    (found,) = _refused(write(f"{text}\n"))
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("dir:/no/such/model", "/no/such/model is not a directory"),
        ("package:no_such_package/m.gguf", "the Python package 'no_such_package' is not installed"),
        ("gguf:/no/such.gguf", "/no/such.gguf: No such file"),
    ],
)
def test_a_model_that_is_not_there(write: Write, source: str, words: str) -> None:
    (found,) = _refused(write(source=source))
    assert found.startswith("2: models.primary.source: model ")
    assert words in found


@pytest.fixture
def draft(model: Path) -> Path:
    """A directory like the model's, with a vocabulary of three tokens in both."""
    for folder in (model, model.parent / "small"):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(_SMALL | {"vocab_size": 3}))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}))
        (folder / "model.safetensors").write_text("{}")
    return model.parent / "small"


_DRAFTED = "engine:\n  device: cpu\n  speculation:\n    draft: {source: 'dir:%s'}\n"
_AT_THE_DRAFT = "6: engine.speculation.draft.source: "


def test_a_draft_that_fits_is_accepted(write: Write, draft: Path) -> None:
    path = write(_DRAFTED % draft)
    assert _checked(path).processes


def test_a_draft_needs_no_tokenizer_and_a_model_does(write: Write, draft: Path) -> None:
    """Most heads have none."""
    (draft / "tokenizer.json").unlink()
    path = write(_DRAFTED % draft)
    assert _checked(path).processes
    (draft.parent / "model" / "tokenizer.json").unlink()
    (found,) = _refused(path)
    assert "models.primary.source: " in found
    assert "holds no tokenizer" in found


def test_a_draft_of_the_hub_without_a_tokenizer_is_looked_at_as_well(
    write: Write, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["llmserve.models.resolve"], "cached_snapshot", lambda *asked: draft)
    (draft / "tokenizer.json").unlink()
    (draft / "config.json").write_text(json.dumps(_SMALL | {"vocab_size": 4}))
    (found,) = _refused(write("engine: {device: cpu, speculation: {draft: {source: 'hub:o/head'}}}\n"))
    assert "has another vocabulary than the model" in found


def test_a_draft_that_is_not_there(write: Write, model: Path) -> None:
    """It is missed even while the model itself is still to be converted."""
    (found,) = _refused(write(_DRAFTED % "/no/such/draft"))
    assert found == f"{_AT_THE_DRAFT}model 'dir:/no/such/draft': /no/such/draft is not a directory"
    gguf = model / "m.gguf"
    gguf.write_bytes(b"GGUF")
    (found,) = _refused(write(_DRAFTED % "/no/such/draft", source=f"gguf:{gguf}"))
    assert found.startswith(_AT_THE_DRAFT)
    (found,) = _refused(write("engine: {speculation: {draft: {source: 'dir:/d', revision: v1}}}\n"))
    assert found.endswith("only a hub model has a revision; remove its revision")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "config.json",
            _SMALL | {"vocab_size": 4},
            "has another vocabulary than the model: 4 tokens instead",
        ),
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "c": 1, "b": 2}}}, "has another vocabulary than"),
        (
            "tokenizer.json",
            {"model": {"vocab": [["a", -1.0], ["x", -2.0]]}},
            "has another vocabulary than the",
        ),
        ("config.json", _SMALL | {"max_position_embeddings": 256}, "was made for at most 256 tokens"),
    ],
)
def test_a_draft_that_does_not_fit(write: Write, draft: Path, file: str, content: object, said: str) -> None:
    (draft / file).write_text(json.dumps(content))
    (found,) = _refused(write(_DRAFTED % draft))
    assert found.startswith(f"{_AT_THE_DRAFT}{said}")


def test_a_draft_whose_kv_does_not_fit(write: Write, draft: Path) -> None:
    """The model alone needs 0.000244 GiB, and so does the draft."""
    (found,) = _refused(write(_DRAFTED % draft + "kv_cache: {memory_gb: 0.0003}\n"))
    assert found.startswith(
        "7: kv_cache.memory_gb: one request of 512 tokens takes 0.001 GiB of KV with that"
    )
    path = write("engine: {device: cpu}\nkv_cache: {memory_gb: 0.0003}\n")
    assert _checked(path).processes
    _predicting(draft.parent / "model", layers=1)
    assert _checked(path).processes
    path = write("engine: {device: cpu, speculation: {method: mtp}}\nkv_cache: {memory_gb: 0.0003}\n")
    (found,) = _refused(path)
    assert "GiB of KV with that of the draft, head or MTP layers" in found


def _predicting(model: Path, layers: int) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": layers}))


def test_a_model_that_cannot_speculate(write: Write, draft: Path) -> None:
    text = "engine: {device: cpu, speculation: {method: mtp}}\n"
    (found,) = _refused(write(text))
    assert (
        found
        == "3: engine.speculation.method: the model has no MTP layers (layers that predict further tokens)"
    )
    _predicting(draft.parent / "model", layers=2)
    (found,) = _refused(write(text))
    assert found.startswith(
        "3: engine.speculation.method: is not available yet with deployment.disaggregated"
    )
    together = "deployment: {disaggregated: false}\n"
    (found,) = _refused(write(f"{text}{together}"))
    assert found.startswith("3: engine.speculation.method: the model's 2 MTP layers cannot propose 3 tokens")
    assert _checked(write(f"{text.replace('mtp', 'mtp, tokens: 4')}{together}")).processes
    (draft.parent / "model" / "generation_config.json").write_text('{"min_p": 0.1}')
    (found,) = _refused(write("engine: {device: cpu, speculation: {method: ngram}}\n"))
    assert "min_p" in found


def test_a_reload_does_not_miss_a_draft_that_is_gone(write: Write) -> None:
    path = write(_DRAFTED % "/no/such/draft")
    preflight.check_reload(_read(path), path)


def test_everything_is_told_at_once_in_the_order_of_lines(write: Write) -> None:
    path = write(
        "engine:\n  max_model_len: 600\n  tool_call_parser: x\ndeployment: {local: {cores: [4095]}}\n"
    )
    assert [line.partition(":")[0] for line in _refused(path)] == ["4", "5", "6"]


def test_engines_on_gpus(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("engine: {device: cuda}\nstorageClasses: [{name: a, tier: dram, capacity_gb: 0.01}]\n")
    (refused,) = _refused(path)
    assert refused.startswith("3: engine.device: is cuda, and no GPU is visible here")
    monkeypatch.setattr(preflight, "available_gpus", lambda: (0,))
    assert not list(preflight.here(_read(path)))


def test_engines_on_gpus_that_pin_more_than_there_is(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_gpus", lambda: (0, 1))
    path = write("engine: {device: auto}\nstorageClasses: [{name: a, tier: dram, capacity_gb: 1000000}]\n")
    (refused,) = _refused(path)
    assert refused.startswith("4: storageClasses[0].capacity_gb: the engines pin up to 1000000.2 GiB: 2 x 96")
    monkeypatch.setattr(preflight, "available_gpus", tuple)
    assert not list(preflight.here(_read(path)))


def test_a_vllm_that_is_not_here_is_not_asked(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "parsers_here", lambda: None)
    assert not list(preflight.here(_read(write("engine: {tool_call_parser: new}\n"))))


def test_what_is_missing_now(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as page:
        ports = http.getsockname()[1], page.getsockname()[1]
        manifest = _read(
            write(
                f"deployment: {{local: {{port: {ports[0]}}}}}\nobservability: {{port: {ports[1]}}}\n"
                "storageClasses:\n  - {name: a, tier: dram, capacity_gb: 1000000}\n"
                f"  - {{name: b, tier: nvme, capacity_gb: 1, location: {tmp_path}/file/kv}}\n"
            )
        )
        plan = plan_local(manifest, (0,), iter(range(20000, 20100)).__next__)
        found = {one.paths[0]: one.message for one in preflight.now(manifest, plan)}
    assert f"{ports[0]}: the port is in use by" in found["deployment", "local", "port"]
    assert f"{ports[1]}: the port is in use by" in found["observability", "port"]
    assert "make its tier `dram` smaller" in found["storageClasses", 0, "capacity_gb"]
    assert found["storageClasses", 1, "location"] == f"{tmp_path}/file is not a directory"
    free = _read(write("storageClasses:\n  - {name: a, tier: dram, capacity_gb: 0.01}\n"))
    assert not list(preflight.now(free, plan_local(free, (0,), iter(range(20000, 20100)).__next__)))


def test_a_reload_is_refused_what_the_next_start_would_be(write: Write) -> None:
    path = write("engine: {max_model_len: 600}\n")
    with pytest.raises(ManifestError, match=r":3: engine\.max_model_len"):
        preflight.check_reload(_read(path), path)


def test_a_reload_waits_for_no_model_and_asks_no_environment(write: Write) -> None:
    path = write("security: {api_keys: [{tenant: a, key_env: NOT_SET_HERE}]}\n", source="dir:/gone")
    assert "NOT_SET_HERE" not in os.environ
    preflight.check_reload(_read(path), path)


def test_each_of_several_models_is_checked_and_named(write: Write, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "config.json").write_text(json.dumps(_SMALL | {"max_position_embeddings": 128}))
    path = write()
    path.write_text(
        "kind: LLMServe\nengine: {device: cpu, max_model_len: 256}\nmodels:\n"
        f"- source: dir:{model}\n  engine:\n    tool_call_parser: herms\n"
        f"- source: dir:{other}\n  adapters: [{{name: a, source: dir:/no/such/adapter}}]\n"
        "- source: dir:/no/such/thing\n  engine: {max_model_len: 64}\n"
    )
    found = _refused(path)
    assert [line.partition(": ")[0] + ": " + line.split(": ")[1] for line in found] == [
        "2: engine.max_model_len",
        "6: models[0].engine.tool_call_parser",
        "8: models[1].adapters[0].source",
        "9: models[2].source",
    ]
    assert "made for at most 128 tokens" in found[0]


def test_a_reload_does_not_ask_where_models_are(write: Write, model: Path) -> None:
    path = write()
    path.write_text(f"kind: LLMServe\nmodels:\n- source: dir:{model}\n- source: dir:/no/such/thing\n")
    preflight.check_reload(_read(path), path)
    path.write_text(f"kind: LLMServe\nmodels:\n- {{source: 'dir:{model}', engine: {{max_model_len: 513}}}}\n")
    with pytest.raises(ManifestError, match=r"3: models\[0\]\.engine\.max_model_len: the model was made"):
        preflight.check_reload(_read(path), path)
