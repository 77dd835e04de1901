"""What an API server keeps, and what it refuses. Objects are checked with kubernetes-validate, which has the
schemas of Kubernetes; apply is kube_fields. `step` does what controllers and kubelets do between two looks.
"""

import copy
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.kube_fields import Conflict, Fields, UnknownField, apply, text
from tests.support.kube_schemas import definitions, first_error, schema_of

Object = dict[str, Any]
Key = tuple[str, str]
FIXED = {
    "Deployment": ("selector",),
    "StatefulSet": ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"),
}


class Refusal(Exception):
    """An answer that is not 2xx: kubernetes' Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Store:
    """Of one namespace or of several. `denied` makes an admission webhook: (kind, name) to its words.
    `broken` are workloads whose pods never become ready, with the reason a kubelet gives.
    `runs` says of a pod whether it is ready, and `has_ended` of one whose workload is gone, by its name,
    whether it has ended; a kubelet has others.
    `logs`: of pod and container, lines with their time in front; `previous_logs`: of the run before."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.namespaces: set[str] = {"default"}
        self.crds: set[str] = set()
        self.objects: dict[Key, Object] = {}
        self.denied: dict[Key, str] = {}
        self.deny_dry_runs = True
        self.broken: dict[str, tuple[str, str]] = {}
        self.runs: Callable[[Object], bool] = lambda pod: True
        self.has_ended: Callable[[str], bool] = lambda name: True
        self.logs: dict[tuple[str, str], list[str]] = {}
        self.previous_logs: dict[tuple[str, str], list[str]] = {}
        self._owners: dict[Key, dict[str, set[Any]]] = {}
        self._revision = 0

    def add_namespace(self, name: str) -> None:
        if name in self.namespaces:
            raise Refusal(409, "AlreadyExists", f'namespaces "{name}" already exists')
        self.namespaces.add(name)

    def apply(self, namespace: str, body: Object, manager: str, force: bool, dry_run: bool) -> Object:
        kind, name = body["kind"], body["metadata"]["name"]
        key = (kind, name)
        self._check_namespace(namespace)
        before = self.objects.get(key)
        live = copy.deepcopy(before) if before else self._new(body, namespace)
        owners = copy.deepcopy(self._owners.get(key, {}))
        try:
            apply(live, owners, manager, self._fields(body).leaves(body), force)
        except Conflict as conflict:
            raise Refusal(409, "Conflict", _conflict_text(conflict)) from None
        except UnknownField as unknown:
            raise Refusal(
                500, "", f"failed to create typed patch object: {unknown}: field not declared in schema"
            ) from None
        self._default(live)
        self._check(live, before)
        if key in self.denied and (not dry_run or self.deny_dry_runs):
            raise Refusal(
                403, "Forbidden", f'admission webhook "policy" denied the request: {self.denied[key]}'
            )
        if before is None or _without_meta(live) != _without_meta(before):
            self._revision += 1
            live["metadata"]["resourceVersion"] = str(self._revision)
            if before is not None and live.get("spec") != before.get("spec"):
                live["metadata"]["generation"] += 1
        live["metadata"]["managedFields"] = [{"manager": one, "operation": "Apply"} for one in owners]
        if not dry_run:
            self.objects[key], self._owners[key] = live, owners
        return live

    def _new(self, body: Object, namespace: str) -> Object:
        metadata = {
            "name": body["metadata"]["name"],
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": 1,
        }
        return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata}

    def get(self, kind: str, name: str) -> Object:
        found = self.objects.get((kind, name))
        if found is None:
            raise Refusal(404, "NotFound", f'{kind.lower()}s "{name}" not found')
        return found

    def list(self, kind: str, selector: str) -> list[Object]:
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        return [
            one
            for (of, _), one in self.objects.items()
            if of == kind and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]

    def delete(self, kind: str, name: str) -> None:
        self.get(kind, name)
        if ("delete", name) in self.denied:
            raise Refusal(403, "Forbidden", self.denied["delete", name])
        del self.objects[kind, name]
        self._owners.pop((kind, name), None)

    def log(self, pod: str, query: Mapping[str, str]) -> str:
        self.get("Pod", pod)
        previous = query.get("previous") == "true"
        lines = (self.previous_logs if previous else self.logs).get((pod, query["container"]))
        if lines is None:
            what = "previous terminated container" if previous else "container"
            raise Refusal(400, "BadRequest", f'{what} "{query["container"]}" in pod "{pod}" not found')
        since, count = query.get("sinceTime", "").rstrip("Z"), query.get("tailLines")
        wanted = [line for line in lines if line >= since]
        return "".join(f"{line}\n" for line in wanted[max(len(wanted) - int(count), 0) if count else 0 :])

    def set_field(self, kind: str, name: str, manager: str, field: str, value: Any) -> None:
        """Another manager's hand: `field` of the spec."""
        self.objects[kind, name]["spec"][field] = value
        owners = self._owners[kind, name]
        for paths in owners.values():
            paths.discard(("spec", field))
        owners.setdefault(manager, set()).add(("spec", field))

    def _check_namespace(self, namespace: str) -> None:
        if namespace not in self.namespaces:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')

    def _fields(self, body: Object) -> Fields:
        if body["kind"] in self.crds:
            return Fields({}, {})
        schema = schema_of(self.version, body["apiVersion"], body["kind"])
        return Fields(schema, definitions(self.version))

    def _check(self, live: Object, before: Object | None) -> None:
        kind, name = live["kind"], live["metadata"]["name"]
        if kind not in self.crds:
            error = first_error(live, self.version)
            if error is not None:
                where = ".".join(map(str, error.path))
                raise Refusal(422, "Invalid", f'{kind} "{name}" is invalid: {where}: {error.message}')
        for field in FIXED.get(kind, ()):
            if before is not None and before["spec"].get(field) != live["spec"].get(field):
                raise Refusal(
                    422, "Invalid", f'{kind}.apps "{name}" is invalid: spec.{field}: field is immutable'
                )

    def _default(self, live: Object) -> None:
        """Of the many defaults, those that meet our fields."""
        spec = live.get("spec", {})
        if live["kind"] in ("Deployment", "StatefulSet"):
            spec.setdefault("replicas", 1)
            live.setdefault("status", {"replicas": 0})
        if live["kind"] == "Service":
            spec.setdefault("clusterIP", f"10.96.0.{len(self.objects) + 1}")
            spec.setdefault("sessionAffinity", "None")

    def step(self) -> None:
        """One more pod of each workload is made of its present template and becomes ready; one of those that
        have lost their workload ends."""
        for (kind, name), one in list(self.objects.items()):
            if kind in ("Deployment", "StatefulSet"):
                self._step(kind, name, one)
        workloads = {name for kind, name in self.objects if kind in ("Deployment", "StatefulSet")}
        ended = [
            (kind, name)
            for kind, name in self.objects
            if kind == "Pod" and name.rpartition("-")[0] not in workloads and self.has_ended(name)
        ]
        for key in ended[:1]:
            del self.objects[key]

    def _step(self, kind: str, name: str, one: Object) -> None:
        status, wanted = one["status"], one["spec"]["replicas"]
        generation = one["metadata"]["generation"]
        if status.get("observedGeneration") != generation:
            status.update(observedGeneration=generation, updatedReplicas=0, replicas=wanted)
            if kind == "StatefulSet":
                status["updateRevision"] = f"r{generation}"
            return
        broken = self.broken.get(name)
        updated = min(wanted, status["updatedReplicas"] + 1)
        status.update(updatedReplicas=updated, replicas=wanted)
        self.objects["Pod", f"{name}-{updated - 1}"] = _pod(one, f"{name}-{updated - 1}", broken)
        pods = [self.objects["Pod", f"{name}-{index}"] for index in range(updated)]
        ready = 0 if broken else sum(map(self.runs, pods))
        status.update(readyReplicas=ready, availableReplicas=ready)
        if kind == "StatefulSet" and updated == wanted:
            status["currentRevision"] = status["updateRevision"]


def _pod(owner: Object, name: str, broken: tuple[str, str] | None) -> Object:
    state = {"waiting": {"reason": broken[0], "message": broken[1]}} if broken else {"running": {}}
    container = {"name": "llmserve", "ready": not broken, "restartCount": 0, "state": state}
    metadata = {"name": name, "labels": owner["spec"]["template"]["metadata"]["labels"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": owner["spec"]["template"]["spec"],
        "status": {"phase": "Pending" if broken else "Running", "containerStatuses": [container]},
    }


def _without_meta(one: Object) -> Object:
    return {**one, "metadata": {**one["metadata"], "managedFields": None, "resourceVersion": None}}


def _conflict_text(conflict: Conflict) -> str:
    found = [f'conflict with "{manager}": {text(path)}' for manager, path in conflict.found]
    many = "conflict" if len(found) == 1 else "conflicts"
    return f"Apply failed with {len(found)} {many}: {', '.join(found)}"
