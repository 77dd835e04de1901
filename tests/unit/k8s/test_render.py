"""What the objects say. That Kubernetes takes them is test_render_valid.py's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from llmserve.config.load import parse_manifest
from llmserve.config.plan_pods import plan_pods
from llmserve.config.schema import Manifest, StorageClass
from llmserve.core.errors import ManifestError
from llmserve.k8s.render import Object, RenderTarget, impossible, render_model
from llmserve.k8s.render.configuration import FILE, HASH_ANNOTATION, doubtful, manifest_text
from llmserve.router.settings import RouterSettings

Parse = Callable[[str], Manifest]
Render = Callable[[Manifest], dict[str, Object]]

KEYS = """
deployment: {k8s: {secret: demo-keys}}
security: {api_keys: [{tenant: a, key_env: KEY_A}]}
"""


def workloads(objects: dict[str, Object]) -> dict[str, Object]:
    """By role."""
    return {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one
        for one in objects.values()
        if one["kind"] in ("Deployment", "StatefulSet")
    }


def pod(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def containers(objects: dict[str, Object]) -> Iterator[Object]:
    for workload in workloads(objects).values():
        yield from pod(workload).get("initContainers", ())
        yield from pod(workload)["containers"]


def test_each_role_has_a_workload_of_its_own(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("")))
    assert found.keys() == {"kvmanager", "router", "prefill", "decode", "apiserver"}
    assert found["kvmanager"]["kind"] == "StatefulSet"
    assert workloads(rendered(parse("deployment: {disaggregated: false}"))).keys() == {
        "kvmanager",
        "router",
        "aggregated",
        "apiserver",
    }


def test_the_commands_are_the_plan_s(parse: Parse, rendered: Render) -> None:
    manifest = parse("")
    found = workloads(rendered(manifest))
    for role, spec in ((one.role, one.process) for one in plan_pods(manifest)):
        container = pod(found[role.value])["containers"][0]
        command = [*container["command"], *container["args"]]
        assert command == ["python", *spec.command("/etc/llmserve/llmserve.yaml", "/tmp")]
        given = {one["name"]: one.get("value") for one in container["env"]}
        assert spec.env.items() <= given.items()
        assert {"POD_NAME", "POD_IP"} <= given.keys()


def test_nothing_runs_as_root_or_writes_to_its_image(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse("deployment: {k8s: {hugepages_gb: 2}}"))
    for workload in workloads(objects).values():
        security = pod(workload)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod(workload)["automountServiceAccountToken"] is False
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_account_has_no_rights(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse(""))
    assert not [title for title in objects if "Role" in title]
    assert objects["ServiceAccount demo"]["automountServiceAccountToken"] is False


def test_health_is_asked_where_it_is_known(parse: Parse, rendered: Render) -> None:
    for role, workload in workloads(rendered(parse(""))).items():
        container = pod(workload)["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if role == "apiserver":
                assert container[probe]["httpGet"]["port"] == "http"
            else:
                assert container[probe]["grpc"]["port"] == 7100
        if role == "apiserver":  # it lives while no worker is there, and gets no requests
            assert container["livenessProbe"]["httpGet"]["path"] == "/live"
            assert container["readinessProbe"]["httpGet"]["path"] == "/health"


MTLS = "deployment: {mode: k8s}\nsecurity: {mtls: {}}\n"


def test_each_role_has_the_certificate_of_its_own_secret(parse: Parse, rendered: Render) -> None:
    secrets = {"prefill": "demo-worker-tls", "decode": "demo-worker-tls"}
    for role, workload in workloads(rendered(parse(MTLS))).items():
        (container,) = pod(workload)["containers"]
        (volume,) = [one for one in pod(workload)["volumes"] if one["name"] == "certificate"]
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "certificate"]
        name = secrets.get(role, f"demo-{role}-tls")
        assert volume["secret"] == {"secretName": name, "defaultMode": 0o440}
        env = {one["name"]: one.get("value") for one in container["env"]}
        folder = name.removeprefix("demo-").removesuffix("-tls")
        assert mount["mountPath"] == f"{env['LLMSERVE_CERTIFICATES']}/{folder}"
        assert mount["readOnly"] is True


def test_with_certificates_probes_ask_over_plain_http(parse: Parse, rendered: Render) -> None:
    """The kubelet has no certificate. No port but that of the metrics answers without one."""
    objects = rendered(parse(MTLS))
    for role, workload in workloads(objects).items():
        container = pod(workload)["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert "grpc" not in container[probe]
            if role != "apiserver":
                assert (asked["port"], asked["path"]) == ("metrics", "/healthz")
            assert asked["port"] in {port["name"] for port in container["ports"]}
    assert objects["Service demo-router"]["spec"]["ports"][0]["appProtocol"] == "https"
    assert objects["Service demo-apiserver"]["spec"]["ports"][0]["appProtocol"] == "http"


def test_the_manifest_of_a_pod_has_no_directory_of_another_machine(parse: Parse) -> None:
    """A flag may have chosen Kubernetes, so that the manifest names the directory of this machine."""
    text = manifest_text(parse("security: {mtls: {directory: certs}, kv_sharing: cluster}\n"))
    assert yaml.safe_load(text)["spec"]["security"] == {"kv_sharing": "cluster"}


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("security: {mtls: {directory: c}}\ntransfer: {engine_order: [ucx]}", "transfer.engine_order"),
        ("security: {tls: {certificate: a, key: b}}", "security.tls"),
    ],
)
def test_what_pods_cannot_have_is_refused_though_the_manifest_is_for_one_machine(
    parse: Parse, text: str, refused: str
) -> None:
    assert [".".join(map(str, one.paths[0])) for one in impossible(parse(text))] == [refused]


def test_a_pod_may_take_its_time_to_start(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse("deployment: {k8s: {ready_timeout_seconds: 901}}"))
    probe = pod(workloads(objects)["decode"])["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 901


def test_the_longest_request_fits_into_the_end_of_a_pod(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("scheduling: {request_timeout_seconds: 1000}")))
    for role in ("prefill", "decode", "apiserver"):
        args = pod(found[role])["containers"][0]["args"]
        assert args[args.index("--drain-seconds") + 1] == "1000"
        assert pod(found[role])["terminationGracePeriodSeconds"] > 1000


def test_engines_run_on_their_nodes_and_have_their_gpus(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("engine: {device: cuda, tensor_parallel: 2}")))
    for role in ("prefill", "decode"):
        spec = pod(found[role])
        assert spec["nodeSelector"] == {"role": role}
        assert {one["key"] for one in spec["tolerations"]} == {"role", "nvidia.com/gpu"}
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert "nvidia.com/gpu" not in spec["initContainers"][0]["resources"]["limits"]
        assert {one["topologyKey"] for one in spec["topologySpreadConstraints"]} == {
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        }
    assert "nodeSelector" not in pod(found["router"])


def test_without_a_label_engines_run_anywhere(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("deployment: {k8s: {node_label: null}}\nengine: {device: cpu}")))
    assert "nodeSelector" not in pod(found["decode"])
    assert "tolerations" not in pod(found["decode"])


def test_memory_of_an_engine(parse: Parse, rendered: Render) -> None:
    text = "deployment: {k8s: {shm_gb: 8, hugepages_gb: 4, rdma_resource: rdma/hca}}"
    spec = pod(workloads(rendered(parse(text)))["decode"])
    sources = {one["name"]: one for one in spec["volumes"]}
    assert sources["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert sources["hugepages"]["emptyDir"] == {"medium": "HugePages"}
    container = spec["containers"][0]
    limits = container["resources"]["limits"]
    assert (limits["hugepages-2Mi"], limits["rdma/hca"]) == ("4Gi", "1")
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert {"/dev/shm", "/dev/hugepages"} <= {one["mountPath"] for one in container["volumeMounts"]}


@pytest.mark.parametrize(("ram_gb", "fits"), [(0.375, True), (0.37, False)])
def test_what_ranks_pin_fits_into_their_pod(parse: Parse, ram_gb: float, fits: bool) -> None:
    resources = f"{{k8s: {{resources: {{decode: {{ram_gb: {ram_gb}}}}}}}}}"
    found = list(impossible(parse(f"deployment: {resources}\nengine: {{tensor_parallel: 4}}")))
    assert [one.paths[0] for one in found] == (
        [] if fits else [("deployment", "k8s", "resources", "decode", "ram_gb")]
    )
    on_cpu = parse(f"deployment: {resources}\nengine: {{tensor_parallel: 4, device: cpu}}")
    assert not list(impossible(on_cpu))


def test_the_manifest_of_the_pods_is_obeyed_alike(parse: Parse, rendered: Render) -> None:
    order = "transfer: {engine_order: [ucx]}"
    manifest = parse(f"engine: {{max_model_len: 512}}\nbudgets: {{max_kv_io_gbps: 8.0}}\n{order}")
    text = rendered(manifest)["ConfigMap demo-manifest"]["data"][FILE]
    again = parse_manifest(text, FILE)
    assert again.model_copy(update={"deployment": manifest.deployment}) == manifest
    assert again.deployment.replicas.decode == manifest.deployment.replicas.decode


def test_pods_know_that_they_are_pods(parse: Parse, rendered: Render) -> None:
    """By the mode, models do not come and go there, and routes of the original projects are off."""
    again = parse_manifest(rendered(parse(""))["ConfigMap demo-manifest"]["data"][FILE], FILE)
    assert not RouterSettings.of(again).manages_models
    assert again.deployment.mode == "k8s"


@pytest.mark.parametrize(
    "text",
    [
        "lora: {dram_gb: 3}\ndeployment: {k8s: {shm_gb: 4}}",
        "api: {response_store: {enabled: true}}\ndeployment: {k8s: {max_replicas: {apiserver: null}}}",
    ],
)
def test_pods_do_not_refuse_what_was_checked(parse: Parse, rendered: Render, text: str) -> None:
    manifest = parse(text)
    assert parse_manifest(rendered(manifest)["ConfigMap demo-manifest"]["data"][FILE], FILE).served


def test_what_pods_would_refuse_is_refused_before(parse: Parse) -> None:
    """Also when --mode says that they are pods."""
    manifest = parse("batches: {enabled: true, location: /data}")
    assert [one.paths[0] for one in impossible(manifest)] == [("batches", "location")]


RDMA = "deployment: {k8s: {rdma_resource: rdma/hca}}"


@pytest.mark.parametrize(
    ("text", "order", "doubted"),
    [
        ("", ("ucx",), False),
        ("engine: {device: cpu}", ("ucx", "nccl"), False),
        ("transfer: {engine_order: [nixl, nccl]}", ("nixl", "nccl"), True),
        (RDMA, ("nixl", "ucx"), False),
        (f"{RDMA}\ntransfer: {{engine_order: [nixl]}}", ("nixl",), False),
        (f"{RDMA}\nengine: {{device: cpu}}", ("nixl", "ucx", "nccl"), False),
        (f"{RDMA}\nsecurity: {{mtls: {{directory: c}}}}", (), False),
        (f"{RDMA}\nsecurity: {{mtls: {{directory: c, plain_transports: true}}}}", ("nixl", "ucx"), False),
    ],
)
def test_pods_use_nixl_where_it_has_rdma_or_is_named(
    parse: Parse, rendered: Render, text: str, order: tuple[str, ...], doubted: bool
) -> None:
    """Between pods there is no CUDA IPC. nccl stays out on GPUs unless the manifest names it."""
    manifest = parse(text)
    again = parse_manifest(rendered(manifest)["ConfigMap demo-manifest"]["data"][FILE], FILE)
    on_gpu = manifest.engine.device != "cpu"
    assert (again.transfer.gpu_order if on_gpu else again.transfer.engine_order) == order
    assert [one.paths[0] for one in doubtful(manifest)] == [("transfer", "engine_order")] * doubted


def test_no_pod_sees_what_else_runs_on_its_node(parse: Parse, rendered: Render) -> None:
    """The levels baseline and restricted of Kubernetes' Pod Security Standards forbid these fields."""
    for workload in workloads(rendered(parse(RDMA))).values():
        assert not {"hostPID", "hostIPC", "hostNetwork", "shareProcessNamespace"} & pod(workload).keys()
        for container in pod(workload)["containers"]:
            assert "privileged" not in container["securityContext"]


def hash_of(objects: dict[str, Object]) -> set[str]:
    return {
        one["spec"]["template"]["metadata"]["annotations"][HASH_ANNOTATION]
        for one in workloads(objects).values()
    }


@pytest.mark.parametrize(
    ("change", "rolls"),
    [
        ("engine: {max_model_len: 1024}", True),
        ("deployment: {replicas: {decode: 5}}", False),
        ("deployment: {k8s: {shm_gb: 9}}", False),
        ("deployment: {disaggregated: false}", True),
    ],
)
def test_what_rolls_the_pods(parse: Parse, rendered: Render, change: str, rolls: bool) -> None:
    before, after = hash_of(rendered(parse(""))), hash_of(rendered(parse(change)))
    assert len(before) == len(after) == 1
    assert (before != after) is rolls


def test_a_budget_that_engines_divide_rolls_with_their_number(parse: Parse) -> None:
    text = "budgets: {max_kv_io_gbps: 8.0}\ndeployment: {replicas: {decode: %d}}"
    assert manifest_text(parse(text % 2)) != manifest_text(parse(text % 3))


def test_keys_are_in_a_secret_and_only_the_apiserver_has_them(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse(KEYS)))
    for role, workload in found.items():
        env = {one["name"]: one for one in pod(workload)["containers"][0]["env"]}
        assert ("KEY_A" in env) is (role == "apiserver")
    env = {one["name"]: one for one in pod(found["apiserver"])["containers"][0]["env"]}
    assert env["KEY_A"]["valueFrom"]["secretKeyRef"] == {"name": "demo-keys", "key": "KEY_A"}
    fetcher = pod(found["decode"])["initContainers"][0]
    token = next(one for one in fetcher["env"] if one["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True


def test_the_password_of_redis_is_for_those_that_ask_it(parse: Parse, rendered: Render) -> None:
    redis = "state: {backend: redis, redis: {url: 'redis://h:1', password_env: REDIS_PW}}"
    for role, workload in workloads(rendered(parse(f"{KEYS}\n{redis}"))).items():
        env = {one["name"]: one for one in pod(workload)["containers"][0]["env"]}
        assert ("REDIS_PW" in env) is (role in ("apiserver", "router"))
        if "REDIS_PW" in env:
            assert env["REDIS_PW"]["valueFrom"]["secretKeyRef"] == {"name": "demo-keys", "key": "REDIS_PW"}


def test_every_role_can_tell_a_trace_endpoint_who_it_is(parse: Parse, rendered: Render) -> None:
    traced = KEYS + "\nobservability: {tracing: {endpoint: 'http://otel:4317'}}"
    for text, is_there in ((traced, True), (KEYS, False)):
        for workload in workloads(rendered(parse(text))).values():
            env = {one["name"]: one for one in pod(workload)["containers"][0]["env"]}
            assert ("OTEL_EXPORTER_OTLP_HEADERS" in env) is is_there
            if is_there:
                reference = env["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"]["secretKeyRef"]
                assert reference == {
                    "name": "demo-keys",
                    "key": "OTEL_EXPORTER_OTLP_HEADERS",
                    "optional": True,
                }


def test_no_secret_goes_into_a_config_map(parse: Parse, rendered: Render) -> None:
    with pytest.raises(ManifestError, match=r"api_keys\[0\]: has its key in the manifest"):
        rendered(parse("security: {api_keys: [{tenant: a, key: s3cr3t}]}"))
    with pytest.raises(ManifestError, match=r"deployment\.k8s\.secret: must name"):
        rendered(parse("security: {api_keys: [{tenant: a, key_env: KEY_A}]}"))


@pytest.mark.parametrize("name", ["1st", "a" * 41])
def test_names_that_kubernetes_does_not_take(parse: Parse, rendered: Render, name: str) -> None:
    manifest = parse("")
    named = manifest.metadata.model_copy(update={"name": name})
    with pytest.raises(ManifestError, match=r"metadata\.name"):
        rendered(manifest.model_copy(update={"metadata": named}))


def test_who_scales_on_what(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse("deployment: {k8s: {max_replicas: {apiserver: 3, prefill: 4, decode: 8}}}"))
    metrics = {
        title.rpartition("-")[2]: [_metric(one) for one in scaler["spec"]["metrics"]]
        for title, scaler in objects.items()
        if scaler["kind"] == "HorizontalPodAutoscaler"
    }
    assert metrics == {
        "apiserver": ["cpu"],
        "prefill": ["llmserve_queue_seconds", "worker_requests_waiting"],
        "decode": ["llmserve_tokens_in_flight_share"],
    }


def _metric(metric: Object) -> Any:
    one = metric[metric["type"].lower()]
    return one["metric"]["name"] if "metric" in one else one["name"]


def test_where_an_autoscaler_counts_nobody_else_does(parse: Parse, rendered: Render) -> None:
    found = workloads(
        rendered(parse("deployment: {replicas: {decode: 2}, k8s: {max_replicas: {decode: 8}}}"))
    )
    assert "replicas" not in found["decode"]["spec"]
    assert found["prefill"]["spec"]["replicas"] == 1
    fixed = rendered(parse("deployment: {k8s: {max_replicas: {apiserver: null}}}"))
    assert not [title for title in fixed if title.startswith("Horizontal")]


def test_there_is_never_a_second_router(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("")))["router"]["spec"]
    assert (found["replicas"], found["strategy"]) == (1, {"type": "Recreate"})


def test_an_engine_s_successor_waits_for_its_gpu(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("")))
    assert found["decode"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert found["apiserver"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_several_routers_are_refused(parse: Parse, rendered: Render) -> None:
    text = "deployment: {replicas: {router: 2}}\nstate: {backend: redis, redis: {url: 'redis://h:1'}}"
    with pytest.raises(ManifestError, match=r"deployment\.replicas\.router: several routers"):
        rendered(parse(text))


def test_the_store_is_on_volumes_of_a_fast_class(parse: Parse, rendered: Render) -> None:
    tiers = (
        StorageClass(name="hot", tier="dram", capacity_gb=6.0),
        StorageClass(name="warm", tier="nvme", capacity_gb=100.0, location="/var/lib/kv"),
        StorageClass(name="cold", tier="object", capacity_gb=900.0, location="s3://bucket/kv"),
    )
    manifest = parse("deployment: {k8s: {storage_class: local-nvme}}").model_copy(
        update={"storageClasses": tiers}
    )
    workload = workloads(rendered(manifest))["kvmanager"]
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "local-nvme"
    assert claim["spec"]["resources"]["requests"]["storage"] == "106Gi"
    container = pod(workload)["containers"][0]
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert mounts["/var/lib/kv"] == claim["metadata"]["name"]
    assert container["resources"]["limits"]["memory"] == "8Gi"  # its own 2 and the tier's 6


def test_kvmanagers_share_the_capacity_of_the_tiers(parse: Parse, rendered: Render) -> None:
    tiers = (
        StorageClass(name="hot", tier="dram", capacity_gb=6.0),
        StorageClass(name="warm", tier="nvme", capacity_gb=100.0, location="/var/lib/kv"),
    )
    text = "deployment: {replicas: {kvmanager: 2}, k8s: {storage_class: local-nvme}}"
    objects = rendered(parse(text).model_copy(update={"storageClasses": tiers}))
    workload = workloads(objects)["kvmanager"]
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert workload["spec"]["replicas"] == 2
    assert claim["spec"]["resources"]["requests"]["storage"] == "53Gi"
    assert pod(workload)["containers"][0]["resources"]["limits"]["memory"] == "5Gi"
    arguments = pod(workloads(objects)["decode"])["containers"][0]["args"]
    addresses = arguments[arguments.index("--kvmanager") + 1].split(",")
    assert [address.split(".")[0][-1] for address in addresses] == ["0", "1"]
    manifest = next(one for one in objects.values() if one["kind"] == "ConfigMap")["data"]["llmserve.yaml"]
    assert yaml.safe_load(manifest)["spec"]["deployment"]["replicas"] == {"kvmanager": 2}


@pytest.mark.parametrize("engine", ["sim", "vllm"])
def test_each_worker_has_a_disk_of_its_own_for_adapters(parse: Parse, rendered: Render, engine: str) -> None:
    """The volume of models may be one of several hosts, between which no directory can be locked."""
    text = "lora: {disk_gb: 8}\ndeployment: {k8s: {model_cache_claim: models}}\nengine: {kind: "
    for role, workload in workloads(rendered(parse(text + engine + "}"))).items():
        container = pod(workload)["containers"][0]
        paths = {one["mountPath"] for one in container["volumeMounts"] if one["name"] == "adapters"}
        given = {one.get("value") for one in container["env"] if one["name"] == "LLMSERVE_ADAPTER_DISK"}
        sources = [one["emptyDir"] for one in pod(workload)["volumes"] if one["name"] == "adapters"]
        is_worker = role in ("prefill", "decode")
        assert paths == given == ({"/var/cache/llmserve/adapters"} if is_worker else set())
        assert sources == ([{"sizeLimit": "9Gi"}] if is_worker else [])
    without = workloads(rendered(parse("")))["decode"]
    assert "adapters" not in {one["name"] for one in pod(without)["volumes"]}


S3_ADAPTERS = "lora: {allowed_sources: ['s3://models']}"
S3_BLOCKS = """storageClasses:
- {name: d, tier: dram, capacity_gb: 9}
- {name: b, tier: object, capacity_gb: 9, location: 's3://kv'}
"""


S3_BATCHES = "batches: {location: 's3://batches'}"


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        (S3_ADAPTERS, {"prefill", "decode"}),
        (S3_BLOCKS, {"kvmanager"}),
        (S3_BATCHES, {"apiserver"}),
        (S3_BATCHES.replace("{", "{enabled: false, "), set()),
        ("lora: {}", set()),
    ],
)
def test_who_reads_buckets_may_have_keys_in_the_secret(
    parse: Parse, rendered: Render, text: str, roles: set[str]
) -> None:
    """Without them, nodes may have a role that reads the bucket."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    references = [{"name": "demo-keys", "key": name, "optional": True} for name in names]
    for role, workload in workloads(rendered(parse(f"{KEYS}\n{text}"))).items():
        env = {one["name"]: one for one in pod(workload)["containers"][0]["env"]}
        found = [env[name]["valueFrom"]["secretKeyRef"] for name in names if name in env]
        assert found == (references if role in roles else [])
    without = workloads(rendered(parse(text)))
    assert not [one for role in without.values() if "AWS_" in str(one := pod(role))]


def test_a_simulated_engine_fetches_no_model(parse: Parse, rendered: Render) -> None:
    found = workloads(rendered(parse("engine: {kind: sim}")))
    assert "initContainers" not in pod(found["decode"])
    assert "nvidia.com/gpu" not in pod(found["decode"])["containers"][0]["resources"]["limits"]
    assert "initContainers" in pod(found["apiserver"])


def test_everything_that_selects_finds_pods(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse("deployment: {k8s: {pod_monitor: true}}"))
    found = workloads(objects)
    pods = [one["spec"]["template"] for one in found.values()]
    for one in objects.values():
        for wanted in _selectors(one):
            chosen = [each for each in pods if wanted.items() <= each["metadata"]["labels"].items()]
            assert chosen, (one["kind"], wanted)
            if one["kind"] == "Service":
                names = {port["name"] for port in chosen[0]["spec"]["containers"][0]["ports"]}
                assert {port["targetPort"] for port in one["spec"]["ports"]} <= names


def _selectors(one: Object) -> Iterator[dict[str, str]]:
    spec = one.get("spec", {})
    if one["kind"] == "Service":
        yield spec["selector"]
    elif "podSelector" in spec:
        yield spec["podSelector"]["matchLabels"]
        for rule in spec["ingress"]:
            for peer in rule.get("from", ()):
                if "podSelector" in peer:
                    yield peer["podSelector"]["matchLabels"]
    elif "selector" in spec:
        yield spec["selector"]["matchLabels"]


def test_only_those_who_must_reach_a_role(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse(""))
    callers = {
        title.rpartition("-")[2]: {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for rule in one["spec"]["ingress"]
            for peer in rule.get("from", ())
            if "podSelector" in peer
        }
        for title, one in objects.items()
        if one["kind"] == "NetworkPolicy"
    }
    assert callers == {
        "router": {"apiserver", "prefill", "decode"},
        "kvmanager": {"router", "apiserver", "prefill", "decode"},
        "prefill": {"apiserver", "prefill", "decode"},
        "decode": {"apiserver", "prefill", "decode"},
        "apiserver": set(),  # everybody, on its HTTP port
    }


_TWO = """\
kind: LLMServe
metadata: {name: demo}
deployment: {k8s: {max_replicas: {decode: 5}}}
models:
- source: hub:org/Large.v1
  engine: {tensor_parallel: 2}
  replicas: {prefill: 1, decode: 3}
- source: hub:org/small
  disaggregated: false
  engine: {device: cpu}
  replicas: {decode: 2}
  lora: {}
"""


def _pod(objects: dict[str, Object], name: str) -> Any:
    return objects[f"Deployment {name}"]["spec"]["template"]["spec"]


@pytest.fixture
def two(rendered: Render) -> dict[str, Object]:
    return rendered(parse_manifest(_TWO, "two.yaml"))


def test_each_model_has_workloads_of_its_own(two: dict[str, Object]) -> None:
    assert {title.partition(" ")[2] for title in two if title.startswith("Deployment ")} == {
        *("demo-router", "demo-apiserver", "demo-large-v1-prefill", "demo-large-v1-decode"),
        "demo-small-aggregated",
    }
    for name, model, role in (
        ("large-v1-decode", "large-v1", "decode"),
        ("small-aggregated", "small", "aggregated"),
    ):
        deployment = two[f"Deployment demo-{name}"]
        selected = deployment["spec"]["selector"]["matchLabels"]
        assert selected["llmserve/model"] == model
        assert selected["app.kubernetes.io/component"] == role
        assert selected.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        assert deployment["metadata"]["labels"]["llmserve/model"] == model
        budget = two[f"PodDisruptionBudget demo-{name}"]
        assert budget["spec"]["selector"]["matchLabels"] == selected
    apiserver = two["Deployment demo-apiserver"]["spec"]["template"]["metadata"]["labels"]
    assert "llmserve/model" not in apiserver


@pytest.mark.parametrize(
    ("name", "series"),
    [("Small.v1", {"model": "Small.v1"}), ("org/small", {}), ("-small", {}), ("x" * 64, {})],
)
def test_a_model_scales_by_its_own_queue(rendered: Render, name: str, series: dict[str, str]) -> None:
    """Kubernetes takes no slash in the value of a label."""
    source = "- source: hub:org/small\n"
    text = _TWO.replace(source, f"{source}  name: {name}\n")
    objects = rendered(parse_manifest(text, "two.yaml"))
    (scaler,) = (
        one for title, one in objects.items() if one["kind"] == "HorizontalPodAutoscaler" and "aggr" in title
    )
    (queue,) = (one["external"]["metric"] for one in scaler["spec"]["metrics"] if "external" in one)
    assert queue["selector"]["matchLabels"] == {"app_kubernetes_io_instance": "demo"} | series


def test_pods_of_a_model_have_its_devices_its_adapters_and_its_weights(two: dict[str, Object]) -> None:
    large, small = (_pod(two, f"demo-{name}") for name in ("large-v1-decode", "small-aggregated"))
    limits = [one["containers"][0]["resources"]["limits"] for one in (large, small)]
    assert [one.get("nvidia.com/gpu") for one in limits] == ["2", None]
    assert "adapters" in {one["name"] for one in small["volumes"]}
    assert "adapters" not in {one["name"] for one in large["volumes"]}
    for pod, name in ((large, "Large.v1"), (small, "small")):
        assert pod["initContainers"][0]["args"][-2:] == ["--model", name]
        args = pod["containers"][0]["args"]
        assert args[args.index("--model") + 1] == name
    assert "--model" not in _pod(two, "demo-apiserver")["initContainers"][0]["args"]


def test_each_model_scales_by_itself(two: dict[str, Object]) -> None:
    scalers = {
        title: one["spec"] for title, one in two.items() if title.startswith("HorizontalPodAutoscaler")
    }
    counts = {
        spec["scaleTargetRef"]["name"]: (spec["minReplicas"], spec["maxReplicas"])
        for spec in scalers.values()
    }
    assert counts["demo-large-v1-decode"] == (3, 5)
    assert counts["demo-small-aggregated"] == (2, 5)


def test_policies_are_for_a_role_whatever_the_model(two: dict[str, Object]) -> None:
    policy = two["NetworkPolicy demo-decode"]
    assert "llmserve/model" not in policy["spec"]["podSelector"]["matchLabels"]
    assert "NetworkPolicy demo-large-v1-decode" not in two


def test_the_number_of_a_model_s_pods_rolls_nothing_but_where_engines_share_a_rate(rendered: Render) -> None:
    def text(more: str, decode: int) -> str:
        manifest = parse_manifest(_TWO.replace("decode: 3", f"decode: {decode}") + more, "two.yaml")
        return str(rendered(manifest)["ConfigMap demo-manifest"]["data"]["llmserve.yaml"])

    assert text("", 3) == text("", 4)
    limited = "budgets: {max_kv_io_gbps: 8.0}\n"
    assert text(limited, 3) != text(limited, 4)
    again = parse_manifest(text(limited, 3), "pod.yaml")
    assert [again.alone(one).deployment.replicas.decode for one in again.served] == [3, 2]
    assert [one.served_name for one in again.served] == ["Large.v1", "small"]


_MANAGED = "deployment: {mode: k8s, k8s: {manage_models: true, model_cache_claim: models}}"


def test_models_that_come_and_go_are_made_by_the_modelmanager_alone(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse(_MANAGED))
    assert workloads(objects).keys() == {"kvmanager", "router", "modelmanager", "apiserver"}
    assert not [title for title in objects if "decode" in title and not title.startswith("NetworkPolicy ")]
    policies = {title.partition(" demo-")[2] for title in objects if title.startswith("NetworkPolicy ")}
    assert policies > {"prefill", "decode", "aggregated"}, "a model that is loaded may be of any shape"
    manifest = parse(_MANAGED)
    entry = manifest.served[0]
    alone = manifest.model_copy(update={"models": (entry,)})
    made = render_model(alone, RenderTarget("prod", "registry/llmserve:1"), {"llmserve/order": "{}"})
    assert [f"{one['kind']} {one['metadata']['name']}" for one in made] == [
        "ConfigMap demo-model-model",
        "PodDisruptionBudget demo-model-prefill",
        "PodDisruptionBudget demo-model-decode",
        "Deployment demo-model-prefill",
        "Deployment demo-model-decode",
    ]
    assert {one["metadata"]["labels"]["llmserve/model"] for one in made} == {"model"}
    assert made[0]["metadata"]["annotations"] == {"llmserve/order": "{}"}
    assert pod(made[-1])["volumes"][0]["configMap"] == {"name": "demo-model-model"}


def test_only_the_modelmanager_has_rights(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse(_MANAGED))
    accounts = {role: pod(one)["serviceAccountName"] for role, one in workloads(objects).items()}
    tokens = {role: pod(one)["automountServiceAccountToken"] for role, one in workloads(objects).items()}
    assert accounts == dict.fromkeys(accounts, "demo") | {"modelmanager": "demo-modelmanager"}
    assert tokens == dict.fromkeys(tokens, False) | {"modelmanager": True}
    (subject,) = objects["RoleBinding demo-modelmanager"]["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "demo-modelmanager", "namespace": "prod"}
    kinds = {kind for rule in objects["Role demo-modelmanager"]["rules"] for kind in rule["resources"]}
    assert not kinds & {"secrets", "serviceaccounts", "roles", "pods/exec"}
    assert objects["NetworkPolicy demo-modelmanager"]["spec"]["ingress"] == [
        {"from": [{"namespaceSelector": {}}], "ports": [{"port": 9400, "protocol": "TCP"}]}
    ]


def test_the_modelmanager_has_the_whole_manifest(parse: Parse, rendered: Render) -> None:
    objects = rendered(parse(_MANAGED))
    text = objects["ConfigMap demo-modelmanager"]["data"][FILE]
    k8s = parse_manifest(text, "whole.yaml").deployment.k8s
    assert (k8s.namespace, k8s.image) == ("prod", "registry/llmserve:1"), "as the command line said"
    assert k8s.model_cache_claim == "models"
    for role in ("router", "apiserver"):
        (volume,) = (one for one in pod(workloads(objects)[role])["volumes"] if one["name"] == "manifest")
        assert volume["configMap"]["name"] == "demo-manifest"
    pods = parse_manifest(objects["ConfigMap demo-manifest"]["data"][FILE], "pods.yaml")
    assert RouterSettings.of(pods).manages_models


def test_what_was_loaded_outlives_the_router_s_pod(parse: Parse, rendered: Render) -> None:
    router = pod(workloads(rendered(parse(_MANAGED)))["router"])
    (container,) = router["containers"]
    run_dir = container["args"][container["args"].index("--run-dir") + 1]
    (mount,) = (one for one in container["volumeMounts"] if run_dir.startswith(one["mountPath"]))
    (volume,) = (one for one in router["volumes"] if one["name"] == mount["name"])
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}


def test_models_that_come_and_go_need_a_volume_for_all_pods(parse: Parse) -> None:
    with pytest.raises(ManifestError, match=r"set deployment\.k8s\.model_cache_claim"):
        parse("deployment: {k8s: {manage_models: true}}")
