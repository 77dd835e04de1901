"""Decides whether engines run LoRA adapters, once for the engines and for all that serves them, and checks
the adapters of a manifest of one model (`Manifest.for_model`). Pure."""

from collections.abc import Iterator

from llmserve.config.adapter_source import AdapterSourceKind, parse_adapter_root, parse_adapter_source
from llmserve.config.conflict import Conflict, Path
from llmserve.config.schema import Lora, Manifest
from llmserve.core.adapters import is_digest
from llmserve.core.errors import InvalidRequest


def lora_of(manifest: Manifest) -> Lora | None:
    """Returns section `lora`, or its defaults when only `models.adapters` is there; None: no adapters."""
    return manifest.lora or (Lora() if manifest.model.adapters else None)


def adapter_kinds(manifest: Manifest) -> frozenset[AdapterSourceKind]:
    """Returns the kinds of places that workers may have to fetch adapters from."""
    roots = map(parse_adapter_root, manifest.lora.allowed_sources if manifest.lora else ())
    declared = (parse_adapter_source(one.source) for one in manifest.model.adapters)
    return frozenset(one.kind for one in (*roots, *declared))


def may_ask_hub(manifest: Manifest) -> bool:
    """Returns whether workers may have to fetch an adapter from the hub."""
    return AdapterSourceKind.HUB in adapter_kinds(manifest)


def adapter_rules(manifest: Manifest) -> Iterator[Conflict]:
    """Checks the name and the revision of each adapter. It is a part of `rules`."""
    for index, one in enumerate(manifest.model.adapters):
        here: Path = ("models", "adapters", index)
        if is_digest(one.name.lower()):
            yield Conflict(((*here, "name"),), "looks like the digest of an adapter; choose another name")
        try:
            parse_adapter_source(one.source, one.revision)
        except InvalidRequest as error:
            yield Conflict(((*here, "revision"), (*here, "source")), error.message)


def adapter_memory(manifest: Manifest) -> Iterator[Conflict]:
    """Checks that the memory of adapters fits into that of a pod. It is a part of `rules`."""
    lora, k8s = lora_of(manifest), manifest.deployment.k8s
    if lora is not None and manifest.deployment.mode == "k8s" and lora.dram_gb >= k8s.shm_gb:
        message = f"must be less than deployment.k8s.shm_gb ({k8s.shm_gb:g}), which it is a part of"
        yield Conflict.at(message, "lora.dram_gb", "deployment.k8s.shm_gb")
