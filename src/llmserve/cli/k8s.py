"""What `up`, `down`, `status`, `logs` and `apply` do with `--mode k8s`."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.text import Text

from llmserve.cli.command import EXIT_FAILED, EXIT_OK
from llmserve.cli.screen import Frame, screen, table, watch
from llmserve.config.load import locate
from llmserve.config.plan_pods import HTTP_PORT, service_name
from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, StartFailed
from llmserve.k8s.api import KubeApi
from llmserve.k8s.apply import (
    Action,
    Change,
    HalfDone,
    NothingApplied,
    apply_changes,
    delete_all,
    diff,
    plan_changes,
    plan_new,
)
from llmserve.k8s.connection import connect
from llmserve.k8s.render import Object, RenderTarget, impossible, render
from llmserve.k8s.render.access import certificate_secrets, cluster_secret
from llmserve.k8s.render.configuration import doubtful, engine_order
from llmserve.k8s.render.objects import files
from llmserve.k8s.render.placement import is_on_gpu
from llmserve.k8s.render.volumes import secret_name
from llmserve.k8s.status import K8sSnapshot, Time, WorkloadStatus, snapshot, wait_gone, wait_ready
from llmserve.runner import preflight
from llmserve.runner.gpus import kv_path_of_pods, pinned_text
from llmserve.transfer.pinned import PinnedMemory

_GONE_MARGIN_SECONDS = 60.0
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def up(options: argparse.Namespace, manifest: Manifest) -> int:
    warnings = _preflight(Path(options.file), manifest)
    objects = render(manifest, _target(options, manifest))
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if options.out:
        _write(options.out, objects)
        _say(f"They need Secrets that no file has: {', '.join(_secrets(manifest))} (docs/security.md)")
        if not options.apply:
            return EXIT_OK
    api = connect_to(options, manifest)
    _warn_of_missing(api, manifest)
    secret = cluster_secret(manifest.metadata.name, api.namespace)
    changes = _plan(api, (secret, *objects), options, manifest)
    _show(changes, options.verbose)
    if not options.apply:
        _say("Nothing was changed. To make these changes, add --apply.")
        return EXIT_OK
    apply_changes(api, changes, _say, force=options.force_conflicts)
    while any(change.action is Action.DELETE for change in changes):
        # What a modelmanager has made before it was deleted is found now, since it may make nothing any more.
        changes = _plan_again(api, (secret, *objects), options, manifest)
        apply_changes(api, changes, _say, force=options.force_conflicts)
    _wait(api, manifest)
    return EXIT_OK


def _plan_again(
    api: KubeApi, objects: Sequence[Object], options: argparse.Namespace, manifest: Manifest
) -> list[Change]:
    """As _plan, after changes were made. Errors: HalfDone."""
    try:
        return _plan(api, objects, options, manifest)
    except NothingApplied as error:
        done = "all changes above were made; only what a modelmanager made meanwhile may be left, because of:"
        raise HalfDone("\n".join([done, *error.refused])) from error


def _secrets(manifest: Manifest) -> list[str]:
    """Returns the names of the Secrets by which processes know each other."""
    certificates = certificate_secrets(manifest, manifest.deployment.k8s.namespace)
    return [secret_name(manifest.metadata.name), *(one["metadata"]["name"] for one in certificates)]


def _warn_of_missing(api: KubeApi, manifest: Manifest) -> None:
    """Names Secrets of certificates that are not there yet: pods wait for them."""
    wanted = certificate_secrets(manifest, api.namespace)
    if missing := [one["metadata"]["name"] for one in wanted if api.get(one) is None]:
        print(
            f"Warning: pods will wait for Secrets that are not there: {', '.join(missing)}", file=sys.stderr
        )


def _plan(
    api: KubeApi, objects: Sequence[Object], options: argparse.Namespace, manifest: Manifest
) -> list[Change]:
    if not api.has_namespace():
        if not options.apply:
            _say(f"Namespace {api.namespace} is not there yet: --apply makes it.")
            return plan_new(objects)
        api.make_namespace()
        _say(f"Namespace {api.namespace} created")
    force, keeps = options.force_conflicts, manifest.deployment.k8s.manage_models
    return plan_changes(api, objects, manifest.metadata.name, force=force, keeps_models=keeps)


def _wait(api: KubeApi, manifest: Manifest) -> None:
    cluster, namespace = manifest.metadata.name, api.namespace
    _say("Waiting until all pods are ready. Ctrl-C ends the waiting, not the cluster.")
    seconds = manifest.deployment.k8s.ready_timeout_seconds
    wait_ready(api, cluster, seconds, _say, Time())
    service = service_name(cluster, ProcessRole.APISERVER)
    _say(f"{cluster} is ready, at http://{service}.{namespace}:{HTTP_PORT}/v1 inside the cluster.")
    _say(f"From here: kubectl -n {namespace} port-forward service/{service} {HTTP_PORT}:{HTTP_PORT}")


def check(path: Path, manifest: Manifest, as_json: bool) -> int:
    """Does the work of `llmserve apply`. No cluster is asked."""
    k8s, warnings = manifest.deployment.k8s, _preflight(path, manifest)
    objects = render(manifest, RenderTarget(k8s.namespace, k8s.image or "IMAGE"))
    notes = [*_gpu_notes(manifest), *_wire_notes(manifest)]
    if as_json:
        found = {"name": manifest.metadata.name, "notes": notes, "warnings": warnings, "objects": objects}
        print(json.dumps(found, indent=2))
        return EXIT_OK
    _say(f"{path}: correct. Cluster {manifest.metadata.name}, in namespace {k8s.namespace}:")
    for one in objects:
        _say(f"  {one['kind']} {one['metadata']['name']}")
    for note in notes:
        _say(f"Note: {note}")
    for warning in warnings:
        _say(f"Warning: {warning}")
    _say(f"Nothing was asked of Kubernetes. To see what would change there: llmserve up -f {path}")
    return EXIT_OK


def _gpu_notes(manifest: Manifest) -> list[str]:
    """Says how KV moves between pods with GPUs, and what each of them pins."""
    every = [manifest.alone(model) for model in manifest.served]
    models = [alone for alone in every if is_on_gpu(alone)]
    is_split = any(alone.deployment.disaggregated for alone in models)
    notes = [f"KV goes from {kv_path_of_pods(manifest)}."] if is_split else []
    for alone in models:
        pinned, whose = PinnedMemory.of_pod(alone), f" of {alone.model.served_name}" if len(every) > 1 else ""
        if pinned.host_bytes:
            notes.append(f"Pinned memory of each pod{whose}: {pinned_text(pinned)}.")
    return notes


def _wire_notes(manifest: Manifest) -> Iterator[str]:
    """Says what protects KV between pods."""
    if manifest.security.mtls is None:
        return
    plain = ", ".join(engine_order(manifest))
    how = f"over {plain}, which encrypt nothing" if plain else "over tcp with TLS"
    yield f"KV between pods goes {how} (security.mtls)."


def _preflight(path: Path, manifest: Manifest) -> list[str]:
    """Returns warnings of what may be otherwise in the cluster. Errors: ManifestError for what cannot be
    there."""
    if refused := list(impossible(manifest)):
        raise locate(path, refused)
    return locate(path, [*doubtful(manifest), *preflight.of_models(manifest)]).message.splitlines()


def down(options: argparse.Namespace, manifest: Manifest) -> int:
    api, cluster = connect_to(options, manifest), manifest.metadata.name
    if not delete_all(api, cluster, _say):
        _say(f"no cluster '{cluster}' is in namespace '{api.namespace}'")
        return EXIT_FAILED
    seconds = manifest.scheduling.request_timeout_seconds + _GONE_MARGIN_SECONDS
    wait_gone(api, cluster, seconds, lambda: delete_all(api, cluster, _say), _say, Time())
    _say(f"{cluster} is gone. The namespace, volumes and Secrets that you made are left as they are.")
    return EXIT_OK


def status(options: argparse.Namespace, manifest: Manifest) -> int:
    api, cluster = connect_to(options, manifest), manifest.metadata.name
    if options.watch:
        watch(lambda: _frame(snapshot(api, cluster)), options.every, as_json=options.json)
        return EXIT_OK
    now = snapshot(api, cluster)
    if options.json:
        print(json.dumps(_as_json(now)))
    else:
        screen().print(_page(now))
    return EXIT_FAILED if now.problems else EXIT_OK


def _frame(now: K8sSnapshot) -> Frame:
    return Frame(lambda _: _page(now), _as_json(now))


def _as_json(now: K8sSnapshot) -> dict[str, object]:
    return {"healthy": not now.problems, **asdict(now), "problems": now.problems}


def _page(now: K8sSnapshot) -> Group:
    workloads = table("WORKLOAD", "READY", "UPDATED", "AT MOST", "RESTARTS", "TROUBLE")
    for one in now.workloads:
        workloads.add_row(*_cells(one))
    return Group(workloads, *(Text(f"Problem: {problem}") for problem in now.problems))


def _cells(one: WorkloadStatus) -> Iterator[str]:
    yield one.name
    yield f"[{'green' if one.done else 'red'}]{one.ready}/{one.wanted}[/]"
    yield str(one.updated)
    yield "-" if one.most is None else str(one.most)
    yield str(one.restarts)
    yield escape("; ".join(one.problems))


def _target(options: argparse.Namespace, manifest: Manifest) -> RenderTarget:
    k8s = manifest.deployment.k8s
    image = options.image or k8s.image
    if image is None:
        raise InvalidRequest("deployment.k8s.image is not set: set it, or use --image")
    return RenderTarget(options.namespace or k8s.namespace, image)


def connect_to(options: argparse.Namespace, manifest: Manifest) -> KubeApi:
    """Errors: InvalidRequest."""
    return KubeApi(connect(options.context), options.namespace or manifest.deployment.k8s.namespace)


def _write(folder: Path, objects: Sequence[Object]) -> None:
    """The kustomization names the files that count: a file of an earlier run that stays there does no
    harm."""
    wanted = files(objects)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise StartFailed(f"{folder}: cannot be written: {error.strerror}") from error
    print(f"{len(wanted)} files in {folder}. To apply them: kubectl apply --server-side -k {folder}")


def _show(changes: Sequence[Change], verbose: bool) -> None:
    """Shows new objects by name only, unless verbose."""
    for change in changes:
        if change.action in (Action.CREATE, Action.DELETE) and not verbose:
            _say(f"{change.name}: {change.action}")
        elif change.action is not Action.KEEP:
            for line in diff(change):
                _say(line, _COLOURS.get(line[:1]))
    counts = Counter(change.action for change in changes)
    _say(", ".join(f"{counts[action]} to {action}" for action in Action))


def _say(text: str, style: str | None = None) -> None:
    screen().print(escape(text), style=style, soft_wrap=True)
