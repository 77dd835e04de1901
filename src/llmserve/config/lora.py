"""Whether engines run LoRA adapters: one decision for the engines and for all that serves them."""

from llmserve.config.schema import Lora, Manifest


def lora_of(manifest: Manifest) -> Lora | None:
    """Returns section `lora`, or its defaults when only `models.adapters` is there; None: no adapters."""
    return manifest.lora or (Lora() if manifest.models.adapters else None)
