"""An apiserver that cannot start says why, and one that stopped leaves nothing."""

import asyncio
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import mistral_common
import pytest
from prometheus_client import CollectorRegistry
from vllm.config import VllmConfig

from bench.ports import free_port
from llmserve.apiserver.options import ApiserverOptions, ModelDirectory
from llmserve.apiserver.role import ApiserverRole
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError, ModelNotFound, StartFailed
from llmserve.rpc.leader import RouterAddresses


def role(manifest: dict[str, Any], model: Path, http: str = "127.0.0.1:0") -> ApiserverRole:
    models = (ModelDirectory("tiny", model),)
    options = ApiserverOptions("apiserver-0", http, RouterAddresses(("127.0.0.1:1",)), models)
    return ApiserverRole(options, Manifest.model_validate(manifest), CollectorRegistry())


async def test_the_port_is_taken(manifest: dict[str, Any], tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        made = role(manifest, tiny_model, f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(StartFailed, match="cannot listen on 127"):
            await made.start()
        await made.aclose()
        await made.aclose()


async def test_there_is_no_model(manifest: dict[str, Any], tmp_path: Path) -> None:
    made = role(manifest, tmp_path)
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        await made.start()
    await made.aclose()


async def test_a_key_is_missing(manifest: dict[str, Any], tiny_model: Path) -> None:
    keys = {"security": {"api_keys": [{"tenant": "red", "key_env": "LLMSERVE_TEST_NO_SUCH_KEY"}]}}
    with pytest.raises(ManifestError, match="LLMSERVE_TEST_NO_SUCH_KEY") as failed:
        role({**manifest, **keys}, tiny_model)
    assert failed.value.key == ("security", "api_keys", 0, "key_env")


@pytest.mark.parametrize("key", ["tool_call_parser", "reasoning_parser"])
async def test_a_parser_that_vllm_does_not_have(manifest: dict[str, Any], tiny_model: Path, key: str) -> None:
    engine = {**manifest.get("engine", {}), key: "nobodys"}
    made = role({**manifest, "engine": engine}, tiny_model)
    with pytest.raises(ManifestError, match="vLLM has no parser 'nobodys'") as failed:
        await made.start()
    assert failed.value.key == ("engine", key)
    await made.aclose()


async def test_an_api_that_answers_nobody_is_not_ready(
    manifest: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was with this variable in the environment of `llmserve up`."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    made = role(manifest, tiny_model)
    with pytest.raises(StartFailed, match="/v1/models with 401"):
        await made.start()
    await made.aclose()


async def test_nothing_is_left_running(manifest: dict[str, Any], tiny_model: Path) -> None:
    before = asyncio.all_tasks()
    made = role(manifest, tiny_model)
    await made.start()
    await made.aclose()
    left = {task.get_name() for task in asyncio.all_tasks() - before if not task.done()}
    assert left == set()


async def test_a_start_hashes_vllm_s_configuration_once(
    manifest: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would do so for each of its handlers, which takes a fifth of the time of an application."""
    hashed: list[str] = []
    compute_hash = VllmConfig.compute_hash

    def compute(config: VllmConfig) -> str:
        hashed.append(compute_hash(config))
        return hashed[-1]

    monkeypatch.setattr(VllmConfig, "compute_hash", compute)
    made = role(manifest, tiny_model)
    await made.start()
    await made.aclose()
    assert len(hashed) == 1


async def test_a_model_of_text_alone_has_its_tokenizer_read_once(
    manifest: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would read it again for a processor, which only models of images and sounds have."""
    asked: list[str] = []
    monkeypatch.setattr("vllm.renderers.hf._PROCESSOR_CHAT_TEMPLATES", {})
    monkeypatch.setattr("vllm.renderers.hf.cached_get_processor", lambda name, **_: asked.append(name))
    made = role(manifest, tiny_model)
    await made.start()
    await made.aclose()
    assert asked == []


async def test_a_model_with_vllm_s_own_tokenizer_of_mistral_is_served(
    manifest: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """It lacks much of what those of transformers have."""
    model = shutil.copytree(tiny_model, tmp_path / "mistral")
    tekken = Path(mistral_common.__file__).parent / "data/tekken_240911.json"
    (model / "tekken.json").symlink_to(tekken)
    engine = {**manifest.get("engine", {}), "options": {"tokenizer_mode": "mistral"}}
    api = {**manifest.get("api", {}), "original_routes": True}
    made = role({**manifest, "engine": engine, "api": api}, model, http := f"127.0.0.1:{free_port()}")
    await made.start()
    async with httpx.AsyncClient(base_url=f"http://{http}") as client:
        described = await client.get("/model")
        chat = await client.post("/tokenize", json={"messages": [{"role": "user", "content": "hello"}]})
    await made.aclose()
    assert described.json()["eos"] is None
    assert chat.json()["count"] == len(chat.json()["tokens"]) > 3, chat.text
