"""The pod of a role: its command, its probes, its end, its place, and what it may touch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.config.adapter_source import AdapterSourceKind
from llmserve.config.lora import adapter_kinds, lora_of
from llmserve.config.plan_pods import GRPC_PORT, HTTP_PORT, METRICS_PORT, PodPlan, service_name
from llmserve.config.plan_types import ProcessRole, ProcessSpec, fetch_arguments
from llmserve.config.schema import Manifest
from llmserve.k8s.render.configuration import FILE, HASH_ANNOTATION, manifest_hash
from llmserve.k8s.render.objects import Object, labels
from llmserve.k8s.render.placement import placement, resources
from llmserve.k8s.render.volumes import (
    ADAPTERS_DIR,
    CERTIFICATES_DIR,
    CONFIG_DIR,
    SECRET_DIR,
    STATE_DIR,
    TEMP_DIR,
    mounts,
    volumes,
)
from llmserve.metrics.registry import HEALTH_PATH
from llmserve.rpc.credentials import CERTIFICATES_VARIABLE, SECRET_NAME, SECRET_VARIABLE

CONTAINER = "llmserve"
FETCH_CONTAINER = "model"
_USER = 10001
# Until no Service sends requests here any more: the kubelet and the proxies learn of the end at one time.
_LEAVE_SECONDS = 5
_CLOSE_SECONDS = 30  # for what comes after the drain: leases, the engine, the last replies
_STARTUP_PERIOD_SECONDS = 5


@dataclass(frozen=True, slots=True)
class PodContext:
    """pods: as plan_pods made them. configuration: the ConfigMap that the pod mounts."""

    pods: PodPlan
    image: str
    configuration: Object

    @property
    def manifest(self) -> Manifest:
        return self.pods.manifest

    @property
    def process(self) -> ProcessSpec:
        return self.pods.process

    @property
    def role(self) -> ProcessRole:
        return self.process.role

    @property
    def needs_model(self) -> bool:
        """Whether the model is prepared before the process starts. A simulated engine has no weights; an
        apiserver needs the tokenizer."""
        is_sim = self.manifest.engine.kind == "sim"
        return self.process.loads_model and not (self.role.is_worker and is_sim)

    @property
    def needs_state(self) -> bool:
        """Whether the pod has the directory of the models. Where models come and go, the router keeps there
        what is wanted, and the modelmanager fetches them."""
        keeps = self.role in (ProcessRole.ROUTER, ProcessRole.MODELMANAGER)
        return self.needs_model or (keeps and self.manifest.deployment.k8s.manage_models)

    @property
    def run_dir(self) -> str:
        """The router's outlives its pod where models come and go."""
        if self.role is ProcessRole.ROUTER and self.needs_state:
            return f"{STATE_DIR}/clusters/{self.manifest.metadata.name}"
        return TEMP_DIR

    @property
    def account(self) -> str:
        """The ServiceAccount. Only that of the modelmanager may do anything."""
        cluster = self.manifest.metadata.name
        is_manager = self.role is ProcessRole.MODELMANAGER
        return service_name(cluster, self.role) if is_manager else cluster


def pod_template(context: PodContext) -> Object:
    cluster, k8s = context.manifest.metadata.name, context.manifest.deployment.k8s
    secret = k8s.image_pull_secret
    spec = {
        "serviceAccountName": context.account,
        "automountServiceAccountToken": context.role is ProcessRole.MODELMANAGER,
        "enableServiceLinks": False,  # its variables would be read as settings (VLLM_PORT, LLMSERVE_*)
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": _grace_seconds(context.process),
        **placement(context.manifest, context.role, context.pods.model),
        **({"initContainers": [_fetcher(context)]} if context.needs_model else {}),
        "containers": [_container(context)],
        "volumes": volumes(
            context.manifest, context.role, context.configuration["metadata"]["name"], context.needs_state
        ),
    }
    metadata = {
        "labels": labels(cluster, context.role, context.pods.model),
        "annotations": {
            HASH_ANNOTATION: manifest_hash(context.configuration),
            "kubectl.kubernetes.io/default-container": CONTAINER,
        },
    }
    return {"metadata": metadata, "spec": spec}


def _grace_seconds(process: ProcessSpec) -> int:
    """The time of the longest request, and of the steps before and after it."""
    return _LEAVE_SECONDS + math.ceil(process.drain_seconds or 0) + _CLOSE_SECONDS


def _container(context: PodContext) -> Object:
    command = context.process.command(f"{CONFIG_DIR}/{FILE}", context.run_dir)
    return {
        "name": CONTAINER,
        **_program(context, command),
        "env": [
            *_identity(),
            *_credentials(context),
            *_environment(context),
            *_secrets(context),
            *_trace_headers(context),
        ],
        "ports": _ports(context.process),
        "resources": resources(context.manifest, context.role),
        **_probes(context),
        # SIGTERM comes after this, and is the drain itself (DESIGN: the stop order is written once).
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_LEAVE_SECONDS)]}}},
        "volumeMounts": mounts(context.manifest, context.role, context.needs_state),
        "securityContext": _security(context),
    }


def _fetcher(context: PodContext) -> Object:
    """The container that prepares the models, as `llmserve up` does before it starts a role."""
    return {
        "name": FETCH_CONTAINER,
        **_program(context, fetch_arguments(f"{CONFIG_DIR}/{FILE}", _only_model(context))),
        "env": [*_places(), *_hub_token(context)],
        "resources": resources(context.manifest, context.role, devices=False),
        "volumeMounts": mounts(context.manifest, context.role, needs_model=True),
        "securityContext": _security(context, devices=False),
    }


def _only_model(context: PodContext) -> str:
    """Returns the model that a worker needs, when there are several."""
    return context.process.model if context.pods.model else ""


def _program(context: PodContext, command: list[str]) -> Object:
    return {
        "image": context.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", *command[:3]],
        "args": command[3:],
    }


def _identity() -> list[Object]:
    """The variables behind the $(...) of the command."""
    fields = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
    return [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]


def _credentials(context: PodContext) -> list[Object]:
    """What the process shows to those of the cluster."""
    has_certificate = context.manifest.security.mtls is not None
    certificates = {CERTIFICATES_VARIABLE: CERTIFICATES_DIR} if has_certificate else {}
    return _variables({SECRET_VARIABLE: f"{SECRET_DIR}/{SECRET_NAME}", **certificates})


def _environment(context: PodContext) -> list[Object]:
    env = context.process.env
    token = _hub_token(context) if env.get("HF_HUB_OFFLINE") == "0" else []
    has_adapters = context.role.is_worker and lora_of(context.manifest) is not None
    adapters = _variables({"LLMSERVE_ADAPTER_DISK": ADAPTERS_DIR} if has_adapters else {})
    return [*_places(), *adapters, *_variables(env), *token, *_bucket_keys(context)]


def _places() -> list[Object]:
    """The variables for everything that is written to a directory."""
    return _variables(
        {
            "HOME": TEMP_DIR,
            "TMPDIR": TEMP_DIR,
            "VLLM_RPC_BASE_PATH": TEMP_DIR,
            "LLMSERVE_CACHE_DIR": f"{STATE_DIR}/models",
            "HF_HOME": f"{STATE_DIR}/hub",
        }
    )


def _variables(values: Mapping[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _secrets(context: PodContext) -> list[Object]:
    """The secret variables under the names that the manifest gives them: API keys, which only the apiserver
    has, and the password of Redis."""
    names: list[str | None] = []
    if context.role is ProcessRole.APISERVER:
        names += [api_key.key_env for api_key in context.manifest.security.api_keys]
    redis, secret = context.manifest.state.redis, context.manifest.deployment.k8s.secret
    if redis and secret and context.role in (ProcessRole.APISERVER, ProcessRole.ROUTER):
        names.append(redis.password_env)
    return [_from_secret(context, name) for name in dict.fromkeys(names) if name]


def _hub_token(context: PodContext) -> list[Object]:
    return _optional(context, "HF_TOKEN")


def _bucket_keys(context: PodContext) -> list[Object]:
    """The keys of buckets, for those that use them: workers for adapters, kvmanagers for blocks, apiservers
    for batches."""
    manifest, locations = context.manifest, list[str | None]()
    if context.role is ProcessRole.KVMANAGER:
        locations = [one.location for one in manifest.storageClasses]
    elif context.role is ProcessRole.APISERVER and manifest.batches.enabled:
        locations = [manifest.batches.location]
    has_adapters = context.role.is_worker and AdapterSourceKind.S3 in adapter_kinds(manifest)
    reads = has_adapters or any((one or "").startswith("s3://") for one in locations)
    return _optional(context, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if reads else []


def _trace_headers(context: PodContext) -> list[Object]:
    """The headers that a trace endpoint may require."""
    if context.manifest.observability.tracing.endpoint is None:
        return []
    return _optional(context, "OTEL_EXPORTER_OTLP_HEADERS")


def _optional(context: PodContext, *names: str) -> list[Object]:
    """Variables that the secret may have, if there is one."""
    has_secret = context.manifest.deployment.k8s.secret is not None
    return [_from_secret(context, name, optional=True) for name in names if has_secret]


def _from_secret(context: PodContext, key: str, optional: bool = False) -> Object:
    reference: dict[str, Any] = {"name": context.manifest.deployment.k8s.secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": key, "valueFrom": {"secretKeyRef": reference}}


def _ports(process: ProcessSpec) -> list[Object]:
    numbers = {
        "grpc": GRPC_PORT if process.listen else 0,
        "http": HTTP_PORT if process.http else 0,
        "metrics": process.metrics_port and METRICS_PORT,
    }
    return [
        {"name": name, "containerPort": number, "protocol": "TCP"}
        for name, number in numbers.items()
        if number
    ]


def _probes(context: PodContext) -> Object:
    """Probes use gRPC's standard health service. The kubelet has no certificate: with `security.mtls` they
    ask on the port of the metrics. An apiserver is asked over HTTP, and is alive while no worker is there. A
    busy engine may answer late: it is killed only after a minute without an answer."""
    alive, ready = _questions(context)
    starts = math.ceil(context.manifest.deployment.k8s.ready_timeout_seconds / _STARTUP_PERIOD_SECONDS)
    return {
        "startupProbe": alive
        | {"periodSeconds": _STARTUP_PERIOD_SECONDS, "timeoutSeconds": 5, "failureThreshold": starts},
        "readinessProbe": ready | {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
        "livenessProbe": alive | {"periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _questions(context: PodContext) -> tuple[Object, Object]:
    """Returns how to ask whether a pod is alive, and whether it is ready."""
    if context.process.http:
        return _get("http", "/live"), _get("http", "/health")
    check = {"grpc": {"port": GRPC_PORT, "service": ""}}
    if context.manifest.security.mtls is not None:
        check = _get("metrics", HEALTH_PATH)
    return check, check


def _get(port: str, path: str) -> Object:
    return {"httpGet": {"path": path, "port": port, "scheme": "HTTP"}}


def _security(context: PodContext, devices: bool = True) -> Object:
    locks = devices and context.role.is_worker and context.manifest.deployment.k8s.rdma_resource
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **({"add": ["IPC_LOCK"]} if locks else {})},
    }
