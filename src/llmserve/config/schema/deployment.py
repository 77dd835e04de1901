"""Section `deployment`: where the roles run, and how many of each."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import GiB, KeyUnit, ManifestSection, Seconds

Processes = Annotated[int, KeyUnit("processes")]
Engines = Annotated[int, KeyUnit("engines")]
Pods = Annotated[int, KeyUnit("pods")]


class Replicas(ManifestSection):
    """The number of processes of each role."""

    apiserver: Processes = Field(default=1, ge=1, le=64)
    """HTTP front ends. On one machine they share one port, which spreads connections evenly over them."""
    router: Processes = Field(default=1, ge=1, le=8)
    """Routers do admission, queueing and placement. One of several leads while the others stand by; several
    routers need `state.backend: redis`."""
    prefill: Engines = Field(default=1, ge=0, le=1024)
    """Engines that compute prompts. They exist only in a disaggregated deployment."""
    decode: Engines = Field(default=1, ge=1, le=1024)
    """Engines that generate answers. In a deployment that is not disaggregated they also compute prompts."""
    kvmanager: Processes = Field(default=1, ge=1, le=64)
    """Managers of the block directory, the leases and the tiers of the KV store. Several divide the stored
    blocks: each has an equal part of every `capacity_gb`, `tenant_hotset_gb` and `kv_quota_gb`."""


class LocalDeployment(ManifestSection):
    """Settings of `mode: local`: all roles are processes of this machine."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The HTTP API listens on this address. `0.0.0.0` opens it to the network: set `security.api_keys` then.
    The roles talk to each other over loopback only."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The HTTP API listens on this port, whatever the number of apiservers. 0 chooses a free port."""
    separate_ports: bool = False
    """Each apiserver has a port of its own, starting with `port`, instead of one port for all. A load
    balancer in front can then address each of them."""
    single_process: bool = False
    """Router, kvmanager and apiserver run in one process, by the same code paths. This suits small machines
    and debugging."""
    run_dir: str | None = Field(default=None, min_length=1)
    """This directory holds logs, sockets and state of the run. Without it, `.llmserve/<metadata.name>` beside
    the manifest is used."""
    ready_timeout_seconds: Seconds = Field(default=300.0, gt=0)
    """`up` gives up on a role that is not ready after this long."""
    hang_seconds: Seconds = Field(default=15.0, ge=3)
    """A process that answers nothing for this long while it uses no CPU hangs: it is killed and started
    again. A process that uses the CPU may be silent for at least a minute."""
    reload_on_change: bool = False
    """The manifest is checked once a second and reloaded when it was changed. `llmserve reload` and SIGHUP
    reload it at any time."""
    cores: Annotated[
        Literal["auto"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)],
        KeyUnit("core ids"),
    ] = "auto"
    """These cores are divided between the engines. `auto` divides all cores that this process may use."""


class PodResources(ManifestSection):
    """The resources that one pod requests."""

    cpu: Annotated[float, KeyUnit("cores")] = Field(default=1.0, gt=0)
    """This many cores are reserved for a pod."""
    ram_gb: GiB = Field(default=1.0, gt=0)
    """This much memory is reserved for a pod, which cannot use more. `/dev/shm` counts."""


class RoleResources(ManifestSection):
    """The cores and memory that the pods of each role request."""

    apiserver: PodResources = PodResources(cpu=2.0, ram_gb=4.0)
    """Resources of an apiserver."""
    router: PodResources = PodResources(cpu=1.0, ram_gb=1.0)
    """Resources of a router."""
    prefill: PodResources = PodResources(cpu=4.0, ram_gb=16.0)
    """Resources of a prefill engine, beside its GPUs."""
    decode: PodResources = PodResources(cpu=4.0, ram_gb=16.0)
    """Resources of a decode engine, beside its GPUs."""
    kvmanager: PodResources = PodResources(cpu=1.0, ram_gb=2.0)
    """Resources of a kvmanager. The memory of a `dram` storage class is added."""
    modelmanager: PodResources = PodResources(cpu=1.0, ram_gb=4.0)
    """Resources of the modelmanager, which fetches and converts models (`deployment.k8s.manage_models`)."""


class MaxReplicas(ManifestSection):
    """The most pods of a role that the autoscaler starts. `deployment.replicas` is the least."""

    apiserver: Pods | None = Field(default=4, ge=1, le=64)
    """Apiservers scale on their use of the CPU. Without it, they do not scale."""
    prefill: Pods | None = Field(default=None, ge=1, le=1024)
    """Prefill engines scale on queue time and waiting prompts. Without it, they do not scale."""
    decode: Pods | None = Field(default=None, ge=1, le=1024)
    """Decode engines scale on tokens in flight. Without it, they do not scale."""


class K8sDeployment(ManifestSection):
    """Settings of `mode: k8s`: all roles are pods of a Kubernetes cluster. docs/kubernetes.md explains it."""

    namespace: str = Field(default="llmserve", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """All objects are in this namespace. `--namespace` takes precedence."""
    image: str | None = Field(default=None, min_length=1)
    """All roles run this container image. `--image` takes precedence; one of the two is needed."""
    image_pull_secret: str | None = Field(default=None, min_length=1)
    """The image is pulled with the Secret of this name."""
    secret: str | None = Field(default=None, min_length=1)
    """The Secret of this name holds the API keys, each under the name in its `key_env`, the password of Redis
    under `state.redis.password_env` and, for a gated model, `HF_TOKEN`. You make it; LLMServe only refers to
    it."""
    node_label: str | None = Field(default="role", min_length=1)
    """Prefill engines run on nodes with the label `LABEL=prefill`, and decode engines on nodes with
    `LABEL=decode`, where LABEL is this name. They tolerate a taint of the same name. With null they run on
    any node."""
    storage_class: str = Field(default="fast-nvme", min_length=1)
    """The volumes of `nvme` storage classes have this StorageClass, which should be a fast one."""
    model_cache_claim: str | None = Field(default=None, min_length=1)
    """This PersistentVolumeClaim (ReadWriteMany) keeps models for all pods, at `/var/lib/llmserve`. Without
    it, each pod fetches the model again."""
    manage_models: bool = False
    """Models are loaded, unloaded and swapped while the cluster runs, as on one machine. A pod of its own,
    the modelmanager, makes and deletes the workloads of engines, also those of this manifest; it may do so in
    the whole namespace (docs/security.md). It needs `model_cache_claim`."""
    gpu_resource: str = Field(default="nvidia.com/gpu", min_length=1)
    """The cluster calls a GPU by this resource name. An engine requests one for each rank."""
    rdma_resource: str | None = Field(default=None, min_length=1)
    """The cluster calls an RDMA device by this resource name. With it, each engine requests one and may lock
    memory."""
    shm_gb: GiB = Field(default=2.0, gt=0)
    """The `/dev/shm` of an engine has this size, which counts as memory of its pod."""
    hugepages_gb: Annotated[int, KeyUnit("GiB")] = Field(default=0, ge=0)
    """An engine has this much memory in huge pages of 2 MiB. 0 requests none."""
    resources: RoleResources = RoleResources()
    max_replicas: MaxReplicas = MaxReplicas()
    pod_monitor: bool = False
    """A PodMonitor is made, for clusters with the Prometheus Operator."""
    prometheus_rules: bool = False
    """A PrometheusRule is made with the recording and alert rules of docs/dashboards.md, for clusters with
    the Prometheus Operator. One is enough for all clusters that one Prometheus scrapes."""
    grafana_dashboards: bool = False
    """ConfigMaps are made with the dashboards of docs/dashboards.md. They have the label `grafana_dashboard`,
    for the sidecar of Grafana's Helm charts."""
    ready_timeout_seconds: Seconds = Field(default=1800.0, gt=0)
    """A pod may take this long to become ready, including image, model and start."""


class Deployment(ManifestSection):
    """Where the roles run, and how many of each."""

    mode: Literal["local", "k8s"] = "local"
    """`local` runs processes of this machine. `k8s` runs pods of a Kubernetes cluster."""
    disaggregated: bool = True
    """Prefill and decode run on separate engines, and KV moves between them. With `false`, `replicas.decode`
    engines do both."""
    replicas: Replicas = Replicas()
    local: LocalDeployment = LocalDeployment()
    k8s: K8sDeployment = K8sDeployment()
