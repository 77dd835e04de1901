"""Which storage classes of the manifest become volumes of the kvmanager."""

from collections.abc import Iterator

from llmserve.config.schema import Manifest, StorageClass


def nvme_classes(manifest: Manifest) -> Iterator[tuple[int, StorageClass]]:
    """Those that say where they are kept, with their place in `storageClasses`."""
    for index, storage in enumerate(manifest.storageClasses):
        if storage.tier == "nvme" and storage.location:
            yield index, storage


def volume_name(index: int) -> str:
    return f"nvme-{index}"


def share_gb(manifest: Manifest, storage: StorageClass) -> float:
    """Of a storage class, what each kvmanager has, GiB."""
    return storage.capacity_gb / manifest.deployment.replicas.kvmanager


def dram_gb(manifest: Manifest) -> float:
    """Memory of a kvmanager's DRAM tier, GiB."""
    return sum(share_gb(manifest, storage) for storage in manifest.storageClasses if storage.tier == "dram")
