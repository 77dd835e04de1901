"""The manifest as the pods read it: a ConfigMap, and the hash whose change rolls them."""

import hashlib
from typing import Any

import yaml

from llmserve.config.schema import Manifest
from llmserve.k8s.render.names import Object, named

FILE = "llmserve.yaml"
HASH_ANNOTATION = "llmserve/manifest-sha256"
_HEAD = ("apiVersion", "kind", "metadata")


def config_map(manifest: Manifest, namespace: str) -> Object:
    cluster = manifest.metadata.name
    found = named("v1", "ConfigMap", cluster, namespace, None, f"{cluster}-manifest")
    return found | {"data": {FILE: manifest_text(manifest)}}


def manifest_text(manifest: Manifest) -> str:
    """What the processes obey, and only that: changing a comment or a number of pods rolls nothing."""
    data = manifest.model_dump(mode="json", exclude_unset=True)
    data["deployment"] = _deployment(manifest)
    head = {key: data.pop(key) for key in _HEAD if key in data}
    head.setdefault("apiVersion", manifest.apiVersion)
    head["metadata"] = {"name": manifest.metadata.name}
    return yaml.safe_dump({**head, "spec": data}, sort_keys=False, width=110)


def _deployment(manifest: Manifest) -> dict[str, Any]:
    """Numbers of pods only where the processes count them: decode engines share a KV budget, kvmanagers the
    capacity of the tiers."""
    replicas = manifest.deployment.replicas
    counted: dict[str, int] = {}
    if manifest.budgets.max_kv_io_gbps is not None:
        counted["decode"] = replicas.decode
    if manifest.storageClasses:
        counted["kvmanager"] = replicas.kvmanager
    return {"disaggregated": manifest.deployment.disaggregated, **({"replicas": counted} if counted else {})}


def manifest_hash(configuration: Object) -> str:
    """Of the text that the pods read."""
    return hashlib.sha256(str(configuration["data"][FILE]).encode()).hexdigest()
