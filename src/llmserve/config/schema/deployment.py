"""Section `deployment`: where the roles run, and how many of each."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, ManifestSection


class Replicas(ManifestSection):
    """Processes of each role."""

    apiserver: Annotated[
        int,
        KeyUnit("processes"),
        Field(
            ge=1,
            le=64,
            description="HTTP front ends. On one machine they share one port, and its connections evenly.",
        ),
    ] = 1
    router: Annotated[
        int,
        KeyUnit("processes"),
        Field(
            ge=1,
            le=8,
            description="Routers: admission, queueing and placement. Of several one leads and the others "
            "stand by; they need `state.backend: redis`.",
        ),
    ] = 1
    prefill: Annotated[
        int,
        KeyUnit("engines"),
        Field(ge=0, le=1024, description="Engines that compute prompts. Only in a disaggregated deployment."),
    ] = 1
    decode: Annotated[
        int,
        KeyUnit("engines"),
        Field(
            ge=1,
            le=1024,
            description="Engines that generate. When not disaggregated: engines that do both.",
        ),
    ] = 1
    kvmanager: Annotated[
        int,
        KeyUnit("processes"),
        Field(
            ge=1,
            le=64,
            description="Block directory, leases and the tiers of the KV store. Several divide the stored "
            "blocks: each has an equal part of every `capacity_gb`, `tenant_hotset_gb` and `kv_quota_gb`.",
        ),
    ] = 1


class LocalDeployment(ManifestSection):
    """`mode: local`: all roles as processes of this machine."""

    host: Annotated[
        str,
        Field(
            min_length=1,
            description="Address the HTTP API listens on. `0.0.0.0` opens it to the network: set "
            "`security.api_keys` then. Between the roles only loopback is used.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="Port of the HTTP API, whatever the number of apiservers. 0: a free one.",
        ),
    ] = 8000
    separate_ports: Annotated[
        bool,
        Field(
            description="Give each apiserver a port of its own, `port` and those that follow it, instead of "
            "one for all: for a load balancer in front that is to see each of them."
        ),
    ] = False
    single_process: Annotated[
        bool,
        Field(
            description="Run router, kvmanager and apiserver in one process, by the same code paths: for "
            "small machines and for debugging."
        ),
    ] = False
    run_dir: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Directory for logs, sockets and state of the run. Without it, "
            "`.llmserve/<metadata.name>` beside the manifest.",
        ),
    ] = None
    ready_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(gt=0, description="How long a role may take to become ready before `up` gives up on it."),
    ] = 300.0
    hang_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(
            ge=3,
            description="A process that answers nothing for this long, while it does nothing, hangs: it is "
            "killed and started again. One that works may be silent for a minute at least.",
        ),
    ] = 15.0
    reload_on_change: Annotated[
        bool,
        Field(
            description="Look at the manifest once a second, and reload it when it was changed. `llmserve "
            "reload` and SIGHUP do that at any time."
        ),
    ] = False
    cores: Annotated[
        Literal["auto"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)],
        KeyUnit("core ids"),
        Field(
            description="Cores to divide between the engines. `auto`: all that this process may use.",
        ),
    ] = "auto"


class PodResources(ManifestSection):
    """What one pod asks for."""

    cpu: Annotated[float, KeyUnit("cores"), Field(gt=0, description="Cores that are kept for a pod.")] = 1.0
    ram_gb: Annotated[
        float,
        KeyUnit("GiB"),
        Field(gt=0, description="Memory of a pod, at most and kept for it; `/dev/shm` counts."),
    ] = 1.0


class RoleResources(ManifestSection):
    """What the pods of each role ask for, beside GPUs."""

    apiserver: Annotated[PodResources, Field(description="An apiserver.")] = PodResources(cpu=2.0, ram_gb=4.0)
    router: Annotated[PodResources, Field(description="The router.")] = PodResources(cpu=1.0, ram_gb=1.0)
    prefill: Annotated[PodResources, Field(description="A prefill engine.")] = PodResources(
        cpu=4.0, ram_gb=16.0
    )
    decode: Annotated[PodResources, Field(description="A decode engine.")] = PodResources(
        cpu=4.0, ram_gb=16.0
    )
    kvmanager: Annotated[
        PodResources, Field(description="The kvmanager. A `dram` storage class comes on top.")
    ] = PodResources(cpu=1.0, ram_gb=2.0)


class MaxReplicas(ManifestSection):
    """Up to how many pods of a role the autoscaler may go; `deployment.replicas` are the least."""

    apiserver: Annotated[
        int | None,
        KeyUnit("pods"),
        Field(ge=1, le=64, description="Scales on its use of the CPU. Without it: no autoscaling."),
    ] = 4
    prefill: Annotated[
        int | None,
        KeyUnit("pods"),
        Field(ge=1, le=1024, description="Scales on queue time and waiting prompts. Without it: none."),
    ] = None
    decode: Annotated[
        int | None,
        KeyUnit("pods"),
        Field(ge=1, le=1024, description="Scales on tokens in flight. Without it: no autoscaling."),
    ] = None


class K8sDeployment(ManifestSection):
    """`mode: k8s`: all roles as pods of a Kubernetes cluster. docs/kubernetes.md explains it."""

    namespace: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
            description="Namespace of all objects. `--namespace` wins.",
        ),
    ] = "llmserve"
    image: Annotated[
        str | None,
        Field(min_length=1, description="Container image of all roles. `--image` wins; one is needed."),
    ] = None
    image_pull_secret: Annotated[
        str | None, Field(min_length=1, description="Name of the Secret to pull the image with.")
    ] = None
    secret: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Name of the Secret that holds the API keys, each under the name in its `key_env`, "
            "the password of Redis under `state.redis.password_env` "
            "and, for a gated model, `HF_TOKEN`. You make it; LLMServe only refers to it.",
        ),
    ] = None
    node_label: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Label of the nodes that says what they are for: prefill engines run on nodes with "
            "`LABEL=prefill`, decode engines on `LABEL=decode`, and tolerate a taint of that name. null: "
            "on any node.",
        ),
    ] = "role"
    storage_class: Annotated[
        str,
        Field(min_length=1, description="StorageClass of the volumes of `nvme` storage classes: a fast one."),
    ] = "fast-nvme"
    model_cache_claim: Annotated[
        str | None,
        Field(
            min_length=1,
            description="PersistentVolumeClaim (ReadWriteMany) that keeps models for all pods, at "
            "`/var/lib/llmserve`. Without it each pod fetches the model anew.",
        ),
    ] = None
    gpu_resource: Annotated[
        str, Field(min_length=1, description="What the cluster calls a GPU; an engine asks for one a rank.")
    ] = "nvidia.com/gpu"
    rdma_resource: Annotated[
        str | None,
        Field(
            min_length=1,
            description="What the cluster calls an RDMA device; engines ask for one, and may lock memory.",
        ),
    ] = None
    shm_gb: Annotated[
        float, KeyUnit("GiB"), Field(gt=0, description="Size of `/dev/shm` of an engine; memory of its pod.")
    ] = 2.0
    hugepages_gb: Annotated[
        int, KeyUnit("GiB"), Field(ge=0, description="2 MiB huge pages of an engine. 0: none.")
    ] = 0
    resources: Annotated[RoleResources, Field(description="Cores and memory of the pods.")] = RoleResources()
    max_replicas: Annotated[MaxReplicas, Field(description="How far the roles scale.")] = MaxReplicas()
    pod_monitor: Annotated[
        bool, Field(description="Make a PodMonitor, for clusters with the Prometheus Operator.")
    ] = False
    prometheus_rules: Annotated[
        bool,
        Field(
            description="Make a PrometheusRule with the recording and alert rules of docs/dashboards.md, for "
            "clusters with the Prometheus Operator. Once is enough for all clusters that one Prometheus sees."
        ),
    ] = False
    grafana_dashboards: Annotated[
        bool,
        Field(
            description="Make ConfigMaps with the dashboards of docs/dashboards.md, labelled "
            "`grafana_dashboard` for the sidecar of Grafana's Helm charts."
        ),
    ] = False
    ready_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(gt=0, description="How long a pod may take to become ready: image, model and start."),
    ] = 1800.0


class Deployment(ManifestSection):
    """Where the roles run, and how many of each."""

    mode: Annotated[
        Literal["local", "k8s"],
        Field(description="`local`: processes of this machine. `k8s`: pods of a Kubernetes cluster."),
    ] = "local"
    disaggregated: Annotated[
        bool,
        Field(
            description="Prefill and decode on separate engines, KV moving between them. `false`: "
            "`replicas.decode` engines that do both."
        ),
    ] = True
    replicas: Annotated[Replicas, Field(description="Processes of each role.")] = Replicas()
    local: Annotated[LocalDeployment, Field(description="Settings of `mode: local`.")] = LocalDeployment()
    k8s: Annotated[K8sDeployment, Field(description="Settings of `mode: k8s`.")] = K8sDeployment()
