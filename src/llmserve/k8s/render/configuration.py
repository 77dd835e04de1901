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
    """Each decode engine takes an equal part of the KV budget, so there the processes count them."""
    deployment = manifest.deployment
    obeyed: dict[str, Any] = {"disaggregated": deployment.disaggregated}
    if manifest.budgets.max_kv_io_gbps is not None:
        obeyed["replicas"] = {"decode": deployment.replicas.decode}
    return obeyed


def manifest_hash(configuration: Object) -> str:
    """Of the text that the pods read."""
    return hashlib.sha256(str(configuration["data"][FILE]).encode()).hexdigest()
