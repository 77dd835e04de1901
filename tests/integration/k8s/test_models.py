"""Models that come and go on Kubernetes: the modelmanager between a real router and an API server, and what
`llmserve up` and `down` leave to it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest
from llmserve.core.clock import LeaseClock
from llmserve.core.errors import NotFound, StartFailed, Unavailable
from llmserve.k8s.api import KubeApi
from llmserve.k8s.connection import connect
from llmserve.k8s.render import Object
from llmserve.k8s.render.access import modelmanager_rights
from llmserve.router.leader.file_state import FileState
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.model_calls import ModelClient
from llmserve.runner.machine import HeldPorts
from llmserve.runner.models.pods import PodProcesses
from llmserve.runner.models.role import ModelManagerRole
from tests.integration.k8s.conftest import Cli
from tests.support.kube_server import KubeServer

MANIFEST = """\
kind: LLMServe
metadata: {name: demo}
models: [{source: "hub:o/a", name: a}]
engine: {kind: sim, max_model_len: 512}
scheduling: {drain_timeout_seconds: 5}
deployment:
  mode: k8s
  disaggregated: false
  k8s: {namespace: prod, image: "llmserve:1", manage_models: true, model_cache_claim: models,
        ready_timeout_seconds: 20, max_replicas: {apiserver: null, decode: 2}}
"""
B = json.dumps({"source": "hub:o/b", "name": "b", "disaggregated": True})
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
WAIT_SECONDS = 60.0


class Volume:
    """Has the models that were fetched. may_end: fetches may end."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.may_end = folder, asyncio.Event()
        self.may_end.set()

    async def fetch(self, name: str, manifest: Path, on_progress: Callable[[str], None]) -> str:
        on_progress("42 %")
        await self.may_end.wait()
        loaded = load_manifest(manifest)
        if loaded.model.source == "hub:o/away":
            raise StartFailed("the hub does not answer")
        place = self._folder / loaded.model.served_name
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(CONFIG))
        (place / "tokenizer.json").write_text("{}")
        return str(place)


class Managed:
    """A router and a modelmanager, which end with the stack, and the API server."""

    def __init__(self, server: KubeServer, folder: Path, stack: AsyncExitStack) -> None:
        self.server, self._folder, self._stack = server, folder, stack
        self.volume = Volume(folder / "volume")

    async def start_router(self, manifest: Manifest) -> None:
        router = RouterRole(
            RouterSettings.of(manifest),
            listen="127.0.0.1:0",
            state=FileState(LeaseClock(), self._folder / "router"),
            manifest=manifest,
        )
        self._stack.push_async_callback(router.aclose)
        await router.start()
        self.routers = RouterAddresses((f"127.0.0.1:{router.port}",))
        self.client = ModelClient(self.routers)

    async def start_manager(self, text: str = MANIFEST, metrics_port: int = 0) -> None:
        path = self._folder / "whole.yaml"
        path.write_text(text)
        manifest = load_manifest(path)
        processes = PodProcesses(
            KubeApi(connect(None), "prod"),
            manifest,
            self._folder / "models",
            self.volume.fetch,
            look_seconds=0.01,
        )
        self.manager = ModelManagerRole(
            manifest, processes, self.routers, listen="127.0.0.1:0", metrics_port=metrics_port
        )
        self._stack.push_async_callback(self.manager.aclose)
        await self.manager.start()

    async def until(self, **states: str) -> None:
        found: dict[str, str] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                while found != states:
                    with suppress(Unavailable):
                        found = {one.name: one.state for one in await self.client.list()}
                    await asyncio.sleep(0.01)
        assert found == states

    def named(self, kind: str) -> set[str]:
        return {name for of, name in self.server.store.objects if of == kind}

    async def until_deployments(self, *names: str) -> None:
        await self.until_true(lambda: self.named("Deployment") == set(names))

    async def until_true(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_made(self, key: tuple[str, str]) -> None:
        await self.until_true(lambda: key in self.server.store.objects)

    async def until_changed(self, deployment: str) -> None:
        get = self.server.store.get
        await self.until_true(lambda: get("Deployment", deployment)["metadata"]["generation"] >= 2)


@pytest.fixture
async def managed(server: KubeServer, tmp_path: Path) -> AsyncIterator[Managed]:
    server.store.add_namespace("prod")
    (tmp_path / "whole.yaml").write_text(MANIFEST)
    async with AsyncExitStack() as stack:
        made = Managed(server, tmp_path, stack)
        await made.start_router(load_manifest(tmp_path / "whole.yaml"))
        await made.start_manager()
        await made.until(a="ready")
        yield made


async def test_models_come_and_go(managed: Managed) -> None:
    assert managed.named("Deployment") == {"demo-a-aggregated"}
    seen: list[str] = []
    loaded = await managed.client.load(B, WAIT_SECONDS, on_status=lambda status: seen.append(status.state))
    assert loaded.state == "ready"
    assert set(seen) <= {"registered", "fetching", "starting"}
    assert managed.named("Deployment") == {"demo-a-aggregated", "demo-b-prefill", "demo-b-decode"}
    pod = managed.server.store.get("Pod", "demo-b-decode-0")
    assert pod["metadata"]["labels"]["llmserve/model"] == "b"
    assert {"configMap": {"name": "demo-b-model"}, "name": "manifest"} in pod["spec"]["volumes"]
    await managed.client.unload("a", WAIT_SECONDS)
    assert managed.named("Pod") == {"demo-b-prefill-0", "demo-b-decode-0"}
    assert managed.named("ConfigMap") == {"demo-b-model"}
    assert managed.named("PodDisruptionBudget") == {"demo-b-prefill", "demo-b-decode"}


async def test_it_may_do_all_that_it_does_and_no_more(managed: Managed) -> None:
    managed.server.asked.clear()
    await managed.client.load(B, WAIT_SECONDS, swap="a")
    await managed.start_manager()
    _, role, _ = modelmanager_rights("demo", "prod")
    allowed = {(verb, kind) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}
    assert managed.server.asked == allowed


async def test_a_swap_starts_when_the_other_pods_are_gone(managed: Managed) -> None:
    await managed.client.load(B, WAIT_SECONDS, swap="a")
    writes = [(method, name) for method, kind, name in managed.server.writes if kind == "Deployment"]
    assert writes[1:] == [
        ("DELETE", "demo-a-aggregated"),
        ("PATCH", "demo-b-prefill"),
        ("PATCH", "demo-b-decode"),
    ]
    await managed.until(b="ready")


async def test_another_modelmanager_goes_on_with_what_runs(managed: Managed) -> None:
    await managed.client.load(B, WAIT_SECONDS)
    await managed.manager.aclose()
    await managed.start_manager(MANIFEST.replace("512", "1024"))
    assert {one.state for one in await managed.client.list()} == {"ready"}, "requests go on meanwhile"
    await managed.until_changed("demo-a-aggregated")
    await managed.until_changed("demo-b-decode")
    writes = {(method, kind) for method, kind, _ in managed.server.writes}
    assert ("DELETE", "Deployment") not in writes


async def test_up_waits_for_what_a_modelmanager_begins_with(managed: Managed) -> None:
    """`up` looks at workloads: that of the modelmanager is ready when those of all models are there."""
    await managed.client.load(B, WAIT_SECONDS)
    await managed.manager.aclose()
    for name in managed.named("Deployment"):
        managed.server.store.delete("Deployment", name)
    managed.server.store.delete("ConfigMap", "demo-b-model")
    managed.server.store.broken["demo-a-aggregated"] = ("ImagePullBackOff", "no such image")
    managed.volume.may_end.clear()
    with HeldPorts() as ports:
        port = ports.pick()
        await managed.start_manager(metrics_port=port)
        await managed.until(a="ready", b="fetching")
        assert await _health(port) == 503
        managed.volume.may_end.set()
        async with asyncio.timeout(WAIT_SECONDS):
            while await _health(port) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert managed.named("Deployment") == {"demo-a-aggregated", "demo-b-prefill", "demo-b-decode"}


async def _health(port: int) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code


async def test_what_its_manifest_has_no_more_is_gone_after_a_restart(managed: Managed) -> None:
    await managed.manager.aclose()
    await managed.start_manager(MANIFEST.replace("disaggregated: false", "disaggregated: true"))
    await managed.until_deployments("demo-a-prefill", "demo-a-decode")
    assert managed.named("PodDisruptionBudget") == {"demo-a-prefill", "demo-a-decode"}


async def test_what_another_release_has_written_is_begun_anew(managed: Managed) -> None:
    await managed.manager.aclose()
    annotations = managed.server.store.get("ConfigMap", "demo-a-model")["metadata"]["annotations"]
    (name,) = [name for name in annotations if name.endswith("order")]
    annotations[name] = '{"of": "another release"}'
    await managed.start_manager()

    def found() -> dict[str, Any]:
        of_model = managed.server.store.get("ConfigMap", "demo-a-model")["metadata"]["annotations"]
        return cast("dict[str, Any]", json.loads(of_model[name]))

    await managed.until_true(lambda: found().get("name") == "a")


async def test_what_was_half_unloaded_is_gone_after_a_restart(managed: Managed) -> None:
    await managed.manager.aclose()
    del managed.server.store.objects["ConfigMap", "demo-a-model"]
    await managed.start_manager()
    assert managed.named("Deployment") == set()


async def test_pods_that_do_not_start_are_told_and_taken_away(managed: Managed) -> None:
    await managed.manager.aclose()
    await managed.start_manager(MANIFEST.replace("timeout_seconds: 20", "timeout_seconds: 1"))
    managed.server.store.broken["demo-b-decode"] = ("CreateContainerError", "no space left on device")
    with pytest.raises(StartFailed, match=r"not ready after 1 s: .*demo-b-decode: .*no space left on device"):
        await managed.client.load(B, WAIT_SECONDS)
    assert managed.named("Deployment") == {"demo-a-aggregated"}


async def test_a_load_that_never_answered_fails_in_the_next_modelmanager_too(managed: Managed) -> None:
    """One that was ready is tried again, whatever keeps its new pods from that."""
    managed.server.store.broken["demo-b-decode"] = ("ImagePullBackOff", "no such image")
    await managed.client.load(B, 0)
    await managed.until(a="ready", b="starting")
    await managed.until_made(("Deployment", "demo-b-decode"))
    await managed.manager.aclose()
    managed.server.store.broken["demo-a-aggregated"] = ("ImagePullBackOff", "no such image")
    await managed.start_manager(
        MANIFEST.replace("512", "1024").replace("timeout_seconds: 20", "timeout_seconds: 1")
    )
    await managed.until(a="ready", b="failed")
    (b,) = [one for one in await managed.client.list() if one.name == "b"]
    assert re.search(r"not ready after 1 s: .*demo-b-decode: .*no such image", b.message)
    assert managed.named("Deployment") == {"demo-a-aggregated"}
    assert managed.named("ConfigMap") == {"demo-a-model"}


async def test_names_of_another_cluster_are_not_taken(managed: Managed, cli: Cli) -> None:
    """The names of the objects of cluster `demo` with model `b` are those of a cluster `demo-b`."""
    cli.path.write_text(MANIFEST.replace("demo", "demo-b").replace(", manage_models: true", ""))
    assert (await asyncio.to_thread(cli, "up", "--apply")).code == 0
    entry = json.dumps({"source": "hub:o/b", "name": "b"})
    why = r"Deployment demo-b-aggregated is of cluster 'demo-b', .*: rename one of the two"
    with pytest.raises(StartFailed, match=why):
        await managed.client.load(entry, WAIT_SECONDS)
    assert managed.named("ConfigMap") == {"demo-a-model", "demo-b-manifest"}
    cli.path.write_text(MANIFEST.replace("demo", "demo-a").replace(", manage_models: true", ""))
    said = await asyncio.to_thread(cli, "up", "--apply")
    assert said.code != 0
    assert "Deployment demo-a-aggregated is of cluster 'demo', " in said.err
    assert "(nothing was applied)" in said.err
    assert "demo-a-router" not in managed.named("Deployment")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"source": "hub:o/away", "name": "b"}, "the hub does not answer"),
        ({"source": "hub:o/b", "name": "b"}, "Kubernetes: .*images must be signed"),
    ],
)
async def test_what_cannot_be_had_is_refused_and_nothing_is_made(
    managed: Managed, entry: dict[str, object], why: str
) -> None:
    managed.server.store.denied["Deployment", "demo-b-aggregated"] = "images must be signed"
    with pytest.raises(StartFailed, match=why):
        await managed.client.load(json.dumps(entry), WAIT_SECONDS)
    assert managed.named("ConfigMap") == {"demo-a-model"}


async def test_an_engine_that_does_not_fit_into_its_pod(server: KubeServer, tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    large = "kind: vllm, device: cpu}\nkv_cache: {memory_gb: 14}\nbudgets: {max_requests_in_flight: 8"
    path.write_text(MANIFEST.replace("kind: sim, max_model_len: 512", large))
    manifest = load_manifest(path)
    processes = PodProcesses(KubeApi(connect(None), "prod"), manifest, tmp_path, Volume(tmp_path).fetch)
    why = r"needs about 16\.2 GiB in each aggregated pod \(0 MiB of weights, 14 GiB of KV .*ram_gb is 16"
    with pytest.raises(StartFailed, match=why):
        await processes.prepare(manifest, print)
    processes.close()


async def test_who_waits_is_told_that_it_was_unloaded(managed: Managed) -> None:
    managed.server.store.broken["demo-b-decode"] = ("CrashLoopBackOff", "")
    loading = asyncio.ensure_future(managed.client.load(B, WAIT_SECONDS))
    await managed.until(a="ready", b="starting")
    await managed.client.unload("b", WAIT_SECONDS)
    with pytest.raises(NotFound, match="model b was unloaded"):
        await loading
    assert managed.named("Pod") == {"demo-a-aggregated-0"}


async def test_a_server_that_is_away_for_a_while_fails_no_load(managed: Managed) -> None:
    managed.server.silent = True
    loading = asyncio.ensure_future(managed.client.load(B, WAIT_SECONDS))
    await asyncio.sleep(0.2)
    managed.server.silent = False
    assert (await loading).state == "ready"


async def test_up_leaves_models_alone_and_down_ends_them(managed: Managed, cli: Cli) -> None:
    await managed.client.load(B, WAIT_SECONDS)
    cli.path.write_text(MANIFEST)
    models = managed.named("Deployment")
    said = await asyncio.to_thread(cli, "up", "--apply")
    assert said.code == 0, said.err
    assert "demo-b-decode: 1/1 ready" in said.out
    others = {"demo-router", "demo-apiserver", "demo-modelmanager"}
    assert managed.named("Deployment") == models | others
    again = await asyncio.to_thread(cli, "up")
    assert "0 to create, 0 to update, 25 to keep, 0 to delete" in again.out
    assert (await asyncio.to_thread(cli, "down")).code == 0
    assert {kind for kind, _ in managed.server.store.objects} == set()


async def test_down_beside_a_load_leaves_nothing(managed: Managed, cli: Cli) -> None:
    """Pods of a modelmanager end after its Deployment is gone, and what it makes until then goes, too."""
    cli.path.write_text(MANIFEST)
    assert (await asyncio.to_thread(cli, "up", "--apply")).code == 0
    managed.server.store.has_ended = lambda name: name != "demo-modelmanager-0"
    managed.volume.may_end.clear()
    await managed.client.load(B, 0)
    await managed.until(a="ready", b="fetching")
    down = asyncio.ensure_future(asyncio.to_thread(cli, "down"))
    await managed.until_deployments()
    managed.server.requests.clear()
    managed.volume.may_end.set()
    await managed.until_true(lambda: ("PATCH", "Deployment", "demo-b-decode") in managed.server.writes)
    await managed.manager.aclose()
    managed.server.store.has_ended = lambda name: True
    assert (await down).code == 0
    assert set(managed.server.store.objects) == set()


async def test_switching_it_off_beside_a_load_leaves_nothing_of_the_load(
    managed: Managed, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a modelmanager makes while `up` ends it goes, too."""
    cli.path.write_text(MANIFEST)
    assert (await asyncio.to_thread(cli, "up", "--apply")).code == 0
    managed.volume.may_end.clear()
    await managed.client.load(B, 0)
    await managed.until(a="ready", b="fetching")
    loop, delete = asyncio.get_running_loop(), KubeApi.delete
    made = "Deployment", "demo-b-decode"

    def delete_late(api: KubeApi, one: Object) -> None:
        if one["metadata"]["name"] == "demo-modelmanager" and made not in managed.server.store.objects:
            loop.call_soon_threadsafe(managed.volume.may_end.set)
            asyncio.run_coroutine_threadsafe(managed.until_made(made), loop).result()
        delete(api, one)

    monkeypatch.setattr(KubeApi, "delete", delete_late)
    cli.path.write_text(MANIFEST.replace(", manage_models: true", ""))
    said = await asyncio.to_thread(cli, "up", "--apply")
    assert said.code == 0, said.err
    assert managed.named("Deployment") == {"demo-router", "demo-apiserver", "demo-aggregated"}
    assert managed.named("ConfigMap") == {"demo-manifest"}
