"""Section `deployment`: where the roles run, and how many of each."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.knob import Planned, Section, Unit


class Replicas(Section):
    """Processes of each role."""

    apiserver: Annotated[
        int,
        Unit("processes"),
        Field(ge=1, le=64, description="HTTP front ends. On one machine they listen on consecutive ports."),
    ] = 1
    router: Annotated[
        int,
        Unit("processes"),
        Field(
            ge=1,
            le=8,
            description="Routers: admission, queueing and placement. Of several one leads and the others "
            "stand by; they need `state.backend: redis`.",
        ),
    ] = 1
    prefill: Annotated[
        int,
        Unit("engines"),
        Field(ge=0, le=1024, description="Engines that compute prompts. Only in a disaggregated deployment."),
    ] = 1
    decode: Annotated[
        int,
        Unit("engines"),
        Field(
            ge=1,
            le=1024,
            description="Engines that generate. When not disaggregated: engines that do both.",
        ),
    ] = 1
    kvmanager: Annotated[
        int,
        Unit("processes"),
        Field(
            ge=1,
            le=64,
            description="Block directory, leases and the tiers of the KV store. Several divide the stored "
            "blocks: each has an equal part of every `capacity_gb`, `tenant_hotset_gb` and `kv_quota_gb`.",
        ),
    ] = 1


class LocalDeployment(Section):
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
            description="Port of the HTTP API, of the first apiserver if there are several. 0: a free one.",
        ),
    ] = 8000
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
        Unit("seconds"),
        Field(gt=0, description="How long a role may take to become ready before `up` gives up on it."),
    ] = 300.0
    cores: Annotated[
        Literal["auto"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)],
        Unit("core ids"),
        Field(
            description="Cores to divide between the engines. `auto`: all that this process may use.",
        ),
    ] = "auto"


class Deployment(Section):
    """Where the roles run, and how many of each."""

    mode: Annotated[
        Literal["local", "k8s"],
        Planned("Kubernetes mode", available=("local",)),
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
