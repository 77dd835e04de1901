"""What a pod can write to, and what it reads: the root file system is read-only."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.config.lora import lora_of
from llmserve.config.plan_types import ProcessRole
from llmserve.config.schema import Manifest, StorageClass
from llmserve.k8s.render.objects import Object, gibibytes
from llmserve.rpc.callers import CallerRole


def nvme_classes(manifest: Manifest) -> Iterator[tuple[int, StorageClass]]:
    """The storage classes on NVMe that have a location, each with its index in `storageClasses`."""
    for index, storage in enumerate(manifest.storageClasses):
        if storage.tier == "nvme" and storage.location:
            yield index, storage


def volume_name(index: int) -> str:
    return f"nvme-{index}"


def share_gb(manifest: Manifest, storage: StorageClass) -> float:
    """The part of a storage class that each kvmanager has, in GiB."""
    return storage.capacity_gb / manifest.deployment.replicas.kvmanager


def dram_gb(manifest: Manifest) -> float:
    """The memory of a kvmanager's DRAM tier in GiB."""
    return sum(share_gb(manifest, storage) for storage in manifest.storageClasses if storage.tier == "dram")


CONFIG_DIR = "/etc/llmserve"
SECRET_DIR = "/etc/llmserve-secret"
CERTIFICATES_DIR = "/etc/llmserve-certificates"
STATE_DIR = "/var/lib/llmserve"
TEMP_DIR = "/tmp"
ADAPTERS_DIR = "/var/cache/llmserve/adapters"

_SHM_DIR = "/dev/shm"
_HUGEPAGES_DIR = "/dev/hugepages"
_RECORDS_GB = 1.0  # for what `lora.disk_gb` does not count: a pod that exceeds its volume is evicted


def secret_name(cluster: str) -> str:
    """Returns the name of the Secret with what all processes of a cluster know, under the key `secret`."""
    return f"{cluster}-secret"


def certificate_name(cluster: str, role: ProcessRole) -> str:
    """Returns the name of the Secret with the certificate of a role, as cert-manager writes it. Workers of
    all roles have the same."""
    return f"{cluster}-{CallerRole.of_process(role)}-tls"


@dataclass(frozen=True, slots=True)
class _Volume:
    """source: None for a volume of a claim template, which the pod's own list does not name."""

    name: str
    path: str
    source: Object | None
    read_only: bool = False


def volumes(manifest: Manifest, role: ProcessRole, configuration: str, needs_model: bool) -> list[Object]:
    """configuration: name of the ConfigMap with the manifest."""
    found = _volumes(manifest, role, configuration, needs_model)
    return [{"name": one.name, **one.source} for one in found if one.source is not None]


def mounts(manifest: Manifest, role: ProcessRole, needs_model: bool) -> list[Object]:
    return [
        {"name": one.name, "mountPath": one.path, **({"readOnly": True} if one.read_only else {})}
        for one in _volumes(manifest, role, "", needs_model)
    ]


def _volumes(
    manifest: Manifest, role: ProcessRole, configuration: str, needs_model: bool
) -> Iterator[_Volume]:
    yield _Volume("manifest", CONFIG_DIR, {"configMap": {"name": configuration}}, read_only=True)
    yield _Volume("secret", SECRET_DIR, _secret(secret_name(manifest.metadata.name)), read_only=True)
    if manifest.security.mtls is not None:
        certificate = _secret(certificate_name(manifest.metadata.name, role))
        folder = f"{CERTIFICATES_DIR}/{CallerRole.of_process(role)}"
        yield _Volume("certificate", folder, certificate, read_only=True)
    yield _Volume("tmp", TEMP_DIR, {"emptyDir": {}})
    if needs_model:
        yield _Volume("state", STATE_DIR, _state(manifest.deployment.k8s.model_cache_claim))
    if role.is_worker:
        yield from _engine_memory(manifest)
        yield from _adapters(manifest)
    if role is ProcessRole.KVMANAGER:
        yield from _stores(manifest)


def _secret(name: str) -> Object:
    """A pod's user is not root: fsGroup may read it, and nobody else."""
    return {"secret": {"secretName": name, "defaultMode": 0o440}}


def _state(claim: str | None) -> Object:
    return {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}


def _engine_memory(manifest: Manifest) -> Iterator[_Volume]:
    k8s = manifest.deployment.k8s
    yield _shm(k8s.shm_gb)
    if k8s.hugepages_gb:
        yield _Volume("hugepages", _HUGEPAGES_DIR, {"emptyDir": {"medium": "HugePages"}})


def _adapters(manifest: Manifest) -> Iterator[_Volume]:
    """Each pod has its own: directories of a volume of several hosts cannot be locked between them."""
    if (lora := lora_of(manifest)) is not None:
        size = gibibytes(lora.disk_gb + _RECORDS_GB)
        yield _Volume("adapters", ADAPTERS_DIR, {"emptyDir": {"sizeLimit": size}})


def _stores(manifest: Manifest) -> Iterator[_Volume]:
    for index, storage in nvme_classes(manifest):
        yield _Volume(volume_name(index), str(storage.location), None)


def _shm(gib: float) -> _Volume:
    """Shared memory between the processes of a pod: a container's own is 64 MiB."""
    return _Volume("shm", _SHM_DIR, {"emptyDir": {"medium": "Memory", "sizeLimit": gibibytes(gib)}})
