"""The pods of models on Kubernetes, as ModelManager has them started and ended."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from llmserve.config.conflict import refuse
from llmserve.config.plan_pods import plan_workers, service_name
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import ModelOrder
from llmserve.core.errors import StartFailed, Unavailable
from llmserve.k8s.api import ApiRefused, KubeApi
from llmserve.k8s.render import Object, RenderTarget, impossible, render_model
from llmserve.k8s.render.configuration import (
    DIRECTORY_ANNOTATION,
    FIRST_START_ANNOTATION,
    ORDER_ANNOTATION,
    model_map_name,
)
from llmserve.k8s.render.objects import (
    ALL_CLUSTERS,
    COMPONENT_LABEL,
    MODEL_LABEL,
    other_cluster,
    pod_selector,
    selector,
    taken_text,
    title,
)
from llmserve.k8s.render.placement import is_on_gpu, wanted_resources
from llmserve.k8s.status import statuses
from llmserve.runner.host import GIB, size
from llmserve.runner.models.manager import PlannedModel
from llmserve.runner.models.memory import NeededMemory, engine_bytes
from llmserve.runner.models.processes import Fetch, fetch_checked, weight_bytes

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 300.0  # with a server that does not answer
_GONE_MARGIN_SECONDS = 60.0
_DEPLOYMENT = ("apps/v1", "Deployment")
# What a role of a model has under one name, in the order to delete it.
_OF_A_ROLE = (
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    _DEPLOYMENT,
)


class FoundModel(NamedTuple):
    """A model that an earlier modelmanager has started. was_ready: its engines have answered once."""

    order: ModelOrder
    directory: str
    was_ready: bool


class PodProcesses:
    """A ModelProcesses; a worker is a Deployment, by its name. manifest: that of the cluster. folder: gets a
    manifest for each model. fetch: as for LocalProcesses. look_seconds: between two looks at pods.
    Life: calls ... -> close."""

    def __init__(
        self,
        api: KubeApi,
        manifest: Manifest,
        folder: Path,
        fetch: Fetch,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._api, self._folder, self._fetch = api, folder, fetch
        self._target = RenderTarget(api.namespace, manifest.deployment.k8s.image or "")
        self._cluster, self._look_seconds = manifest.metadata.name, look_seconds
        self._ready_seconds = manifest.deployment.k8s.ready_timeout_seconds
        self._gone_seconds = manifest.scheduling.request_timeout_seconds + _GONE_MARGIN_SECONDS
        self._first_starts: set[str] = set()  # slugs of the models that have never been ready
        # One thread: what is asked last comes last, also when its caller was cancelled meanwhile.
        self._thread = ThreadPoolExecutor(1, "kubernetes")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def found(self) -> list[FoundModel]:
        """Returns the models that an earlier modelmanager has started. Deletes the workloads of others, which
        it was ending, or which `llmserve up` made. Errors: StartFailed."""
        maps = await self._ask(self._list, "v1", "ConfigMap")
        slugs = {one["metadata"]["labels"][MODEL_LABEL] for one in maps}
        for one in await self._ask(self._list, *_DEPLOYMENT):
            if one["metadata"]["labels"][MODEL_LABEL] not in slugs:
                await self._ask(self._delete, one["metadata"]["name"])
        found = {
            one["metadata"]["labels"][MODEL_LABEL]: read for one in maps if (read := _read(one)) is not None
        }
        self._first_starts = {slug for slug, one in found.items() if not one.was_ready}
        return list(found.values())

    async def prepare(self, manifest: Manifest, on_progress: Callable[[str], None]) -> str:
        """Errors: ManifestError for what pods cannot have; StartFailed for a pod that is too small; those of
        the fetch."""
        refuse(impossible(manifest))
        path = self._folder / f"{manifest.model.slug}.yaml"
        directory = await fetch_checked(manifest, path, self._fetch, on_progress)
        await asyncio.to_thread(_check_pods, manifest, directory)
        return directory

    async def plan(self, manifest: Manifest, directory: str, swap: Sequence[str]) -> PlannedModel:
        """Kubernetes finds the nodes later. Errors: StartFailed with what the server refuses, tried in a dry
        run, or when another cluster has a name that is needed."""
        rendered = render_model(manifest, self._target, {})
        await self._ask(self._check_names, rendered)
        for one in rendered:
            await self._ask(self._api.apply, one, dry_run=True, force=True)
        self._first_starts.add(manifest.model.slug)
        return planned(manifest, directory)

    async def check_room(
        self, name: str, needed: NeededMemory, leaving: NeededMemory, coming: Sequence[NeededMemory]
    ) -> None:
        """Kubernetes knows the room on the nodes; what it says is in the error of start."""

    async def start(
        self,
        order: ModelOrder,
        manifest: Manifest,
        planned: PlannedModel,
        on_progress: Callable[[str], None],
    ) -> None:
        """Errors: StartFailed with what keeps pods from being ready."""
        slug, rendered = manifest.model.slug, self._render(order, manifest, planned)
        for one in rendered:
            await self._ask(self._api.apply, one, force=True)
        for one in await self._ask(self._left_from_before, slug, rendered):
            await self._ask(self._api.delete, one)
        await self._until_ready([worker.name for worker in planned.workers], on_progress)
        if slug in self._first_starts:
            self._first_starts.discard(slug)
            configuration = self._render(order, manifest, planned)[0]
            await self._ask(self._api.apply, configuration, force=True)

    async def stop(self, workers: Sequence[str]) -> None:
        """Lets the pods drain, and returns when they are gone. Errors: StartFailed."""
        for name in workers:
            await self._ask(self._delete, name)
        deadline = time.monotonic() + self._gone_seconds
        while left := await self._ask(self._pods_of, workers):
            if time.monotonic() >= deadline:
                _log.warning("pods that should have ended are still there: %s", ", ".join(left))
                return
            await asyncio.sleep(self._look_seconds)

    def _render(self, order: ModelOrder, manifest: Manifest, planned: PlannedModel) -> Sequence[Object]:
        """Returns the objects of a model; the first one says what another modelmanager needs to know."""
        known = {ORDER_ANNOTATION: json.dumps(asdict(order)), DIRECTORY_ANNOTATION: planned.directory}
        is_first = manifest.model.slug in self._first_starts
        return render_model(
            manifest, self._target, known | ({FIRST_START_ANNOTATION: "true"} if is_first else {})
        )

    async def _until_ready(self, workers: Sequence[str], on_progress: Callable[[str], None]) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while missing := "; ".join(await self._ask(self._missing, workers)):
            on_progress(missing)
            if time.monotonic() >= deadline:
                raise StartFailed(f"not ready after {self._ready_seconds:.0f} s: {missing}")
            await asyncio.sleep(self._look_seconds)

    # -- on the thread

    def _list(self, version: str, kind: str) -> list[Object]:
        """Returns the objects of models."""
        found = self._api.list(version, kind, selector(self._cluster))
        return [one for one in found if MODEL_LABEL in one["metadata"]["labels"]]

    def _check_names(self, wanted: Sequence[Object]) -> None:
        """Errors: StartFailed when another cluster has one of them."""
        titles = set(map(title, wanted))
        for version, kind in (("v1", "ConfigMap"), _DEPLOYMENT):
            for one in self._api.list(version, kind, ALL_CLUSTERS):
                if title(one) in titles and (owner := other_cluster(one, self._cluster)):
                    raise StartFailed(taken_text(one, owner))

    def _left_from_before(self, model: str, rendered: Sequence[Object]) -> list[Object]:
        """Returns what the model may have that it should have no more, since its manifest has changed. model:
        slug."""
        kept = {(one["kind"], one["metadata"]["name"]) for one in rendered}
        mine = (one["metadata"] for one in self._list(*_DEPLOYMENT))
        names = [one["name"] for one in mine if one["labels"][MODEL_LABEL] == model]
        return [
            {"apiVersion": version, "kind": kind, "metadata": {"name": name}}
            for name in names
            for version, kind in _OF_A_ROLE
            if (kind, name) not in kept
        ]

    def _missing(self, workers: Sequence[str]) -> list[str]:
        """Returns what keeps each worker from being ready."""
        pods = self._api.list("v1", "Pod", pod_selector(self._cluster))
        known = {one.name: one for one in statuses(self._list(*_DEPLOYMENT), pods, ())}
        absent = [f"{name}: its Deployment was deleted" for name in workers if name not in known]
        waiting = [known[name] for name in workers if name in known and not known[name].done]
        return [*absent, *(f"{one.name}: {one.words}" for one in waiting)]

    def _delete(self, worker: str) -> None:
        """The ConfigMap goes first: a model without one is not resumed."""
        name = model_map_name(self._cluster, self._group(worker)[0])
        self._api.delete({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
        for version, kind in _OF_A_ROLE:
            self._api.delete({"apiVersion": version, "kind": kind, "metadata": {"name": worker}})

    def _pods_of(self, workers: Sequence[str]) -> list[str]:
        wanted = set(map(self._group, workers))
        pods = self._api.list("v1", "Pod", pod_selector(self._cluster))
        labels = ((one["metadata"]["name"], one["metadata"]["labels"]) for one in pods)
        return [name for name, own in labels if (own.get(MODEL_LABEL), own.get(COMPONENT_LABEL)) in wanted]

    def _group(self, worker: str) -> tuple[str, str]:
        """Returns the slug of the model and the role in the name of a Deployment."""
        slug, _, role = worker.removeprefix(f"{self._cluster}-").rpartition("-")
        return slug, role

    async def _ask(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Asks again when the server is away. Errors: StartFailed."""
        deadline, loop = time.monotonic() + _PATIENCE_SECONDS, asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))
            except (ApiRefused, Unavailable) as error:
                is_away = not isinstance(error, ApiRefused) or error.code >= 500 or error.code == 429
                if not is_away or time.monotonic() >= deadline:
                    raise StartFailed(f"Kubernetes: {error.message}") from error
                _log.warning("Kubernetes: %s", error.message)
            await asyncio.sleep(self._look_seconds)


def planned(manifest: Manifest, directory: str) -> PlannedModel:
    """manifest: of one model. Each worker stands for the pods of a role, and has the name of their
    Deployment."""
    cluster = manifest.metadata.name
    workers = tuple(
        replace(pods.process, name=service_name(cluster, pods.role, pods.model))
        for pods in plan_workers(manifest)
    )
    return PlannedModel(directory, workers)


def _read(configuration: Object) -> FoundModel | None:
    """configuration: the ConfigMap of a model. None: what another release has written cannot be read, so the
    router's order begins the model anew."""
    try:
        found = configuration["metadata"]["annotations"]
        order = ModelOrder(**json.loads(found[ORDER_ANNOTATION]))
        return FoundModel(order, str(found[DIRECTORY_ANNOTATION]), FIRST_START_ANNOTATION not in found)
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("ConfigMap %s cannot be read: %r", configuration["metadata"]["name"], error)
        return None


def _check_pods(manifest: Manifest, directory: str) -> None:
    """Checks that an engine on CPUs fits into the memory of its pod. Errors: StartFailed with the sum."""
    alone = manifest.for_model(manifest.model.served_name)
    if alone.engine.kind != "vllm" or is_on_gpu(alone):
        return
    weights = weight_bytes(alone, directory)
    needed = engine_bytes(alone, weights)
    for pods in plan_workers(manifest):
        wanted, key = wanted_resources(alone, pods.role)
        if needed > wanted.ram_gb * GIB:
            raise StartFailed(
                f"model {alone.model.served_name} needs about {size(needed)} in each {pods.role} pod "
                f"({size(weights)} of weights, {alone.kv_cache.memory_gb:g} GiB of KV for each rank), and "
                f"deployment.k8s.resources.{key}.ram_gb is {wanted.ram_gb:g}: raise it, or lower its "
                "kv_cache.memory_gb"
            )
