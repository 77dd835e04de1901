"""A model that is loaded into a local cluster: what it is refused for, its ports and its memory."""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import ModelOrder
from llmserve.core.errors import ManifestError, StartFailed
from llmserve.runner.host import GIB
from llmserve.runner.machine import HeldPorts
from llmserve.runner.models.memory import ENGINE_BYTES
from llmserve.runner.models.processes import LocalProcesses, needed_memory, weight_bytes

MANIFEST = Manifest.model_validate(
    {
        "kind": "LLMServe",
        "engine": {"kind": "sim"},
        "models": [{"source": "hub:o/b", "name": "other", "disaggregated": False}],
        "observability": {"metrics": False},
    }
).for_model("other")

_SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}

ORDER = ModelOrder(1, "other", '{"source":"hub:o/b"}')


class FakeRoster:
    def __init__(self) -> None:
        self.specs = [ProcessSpec(ProcessRole.DECODE, "decode-0", "m", model="first")]

    def workers(self) -> Iterator[ProcessSpec]:
        return iter(self.specs)

    def add(self, processes: Iterable[ProcessSpec]) -> None:
        self.specs += processes

    def remove(self, names: Iterable[str]) -> None:
        self.specs = [spec for spec in self.specs if spec.name not in set(names)]


class FakeSupervisor:
    async def add(self, made: Any) -> None: ...

    async def remove(self, names: Any) -> None: ...


@pytest.fixture
def processes(tmp_path: Path) -> LocalProcesses:
    roster, supervisor = cast("Any", FakeRoster()), cast("Any", FakeSupervisor())
    return LocalProcesses(tmp_path, roster, supervisor, cast("Any", None), cast("Any", lambda *job: None))


def _is_held(address: str | None, monkeypatch: pytest.MonkeyPatch) -> bool:
    port = int(str(address).rpartition(":")[2])
    with monkeypatch.context() as patched, HeldPorts() as others:
        patched.setattr(random, "randrange", lambda *bounds: port)
        try:
            others.pick()
        except StartFailed:
            return True
    return False


async def test_the_ports_of_a_model_are_held_until_it_is_unloaded(
    processes: LocalProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = await processes.plan(MANIFEST, str(tmp_path), ())
    await processes.start(ORDER, MANIFEST, planned, print)
    (worker,) = planned.workers
    assert _is_held(worker.listen, monkeypatch)
    await processes.stop(["decode-0"])  # that of another model
    assert _is_held(worker.listen, monkeypatch)
    await processes.stop([worker.name])
    assert not _is_held(worker.listen, monkeypatch)


async def test_a_plan_that_did_not_start_gives_its_ports_back_to_the_next(
    processes: LocalProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await processes.plan(MANIFEST, str(tmp_path), ())
    second = await processes.plan(MANIFEST, str(tmp_path), ())
    assert _is_held(second.workers[0].listen, monkeypatch)
    assert not _is_held(first.workers[0].listen, monkeypatch)
    await processes.start(ORDER, MANIFEST, second, print)
    await processes.stop([second.workers[0].name])
    assert not _is_held(second.workers[0].listen, monkeypatch)


@pytest.mark.parametrize(
    ("speculation", "why"),
    [
        ({"method": "draft", "draft": {"source": "dir:DRAFT"}}, "has another vocabulary than the model: 4 "),
        ({"method": "mtp"}, "the model has no MTP layers"),
    ],
)
async def test_a_load_is_refused_for_what_its_engines_could_not_do(
    tmp_path: Path, speculation: dict[str, object], why: str
) -> None:
    """As it is when the cluster starts: a draft that does not fit, and a model that cannot speculate."""
    for name, tokens in (("model", 3), ("draft", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(_SMALL | {"vocab_size": tokens}))
        vocabulary = {str(token): token for token in range(tokens)}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        (tmp_path / name / "model.safetensors").write_text("{}")
    text = json.dumps(speculation).replace("DRAFT", str(tmp_path / "draft"))
    engine = {"device": "cpu", "speculation": json.loads(text)}
    entry = {"source": f"dir:{tmp_path / 'model'}", "name": "b", "disaggregated": False}
    manifest = Manifest.model_validate({"kind": "LLMServe", "engine": engine, "models": [entry]})

    async def fetched(name: str, path: Path, on_progress: Callable[[str], None]) -> str:
        return str(tmp_path / "model")

    roster, nobody = cast("Any", FakeRoster()), cast("Any", None)
    processes = LocalProcesses(tmp_path / "models", roster, nobody, fetched, nobody)
    with pytest.raises(ManifestError, match=why):
        await processes.prepare(manifest, print)


def test_the_sum_of_a_model_has_the_weights_of_a_head_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["llmserve.models.resolve"], "cached_snapshot", lambda *asked: tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    engine = {"speculation": {"method": "eagle", "draft": {"source": "hub:o/head"}}}
    models = [{"source": "hub:o/b", "name": "b"}]
    one = Manifest.model_validate({"kind": "LLMServe", "engine": engine, "models": models})
    assert weight_bytes(one, str(tmp_path)) == 2 * 1000, "the model's own are in the same directory here"


def test_the_sum_of_a_model_has_the_keys_of_its_entry(tmp_path: Path) -> None:
    entry = {"source": "hub:o/b", "name": "b", "kv_cache": {"memory_gb": 6}}
    one = Manifest.model_validate({"kind": "LLMServe", "kv_cache": {"memory_gb": 1}, "models": [entry]})
    needed = needed_memory(one, str(tmp_path), [ProcessSpec(ProcessRole.DECODE, "b-decode-0", "m")])
    assert needed.host_bytes == ENGINE_BYTES + 6 * GIB
