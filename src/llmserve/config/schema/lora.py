"""Section `lora`: adapters at run time."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llmserve.config.adapter_source import parse_adapter_root
from llmserve.config.schema.section import ForAllModels, GiB, KeyUnit, Live, ManifestSection, refusing

EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "embed_out"})


class Lora(ManifestSection):
    """LoRA adapters: how many run at once, and where they may come from. With this section, or with
    `models.adapters`, engines run adapters."""

    slots: Annotated[int, KeyUnit("adapters")] = Field(default=4, ge=1, le=256)
    """An engine runs requests of at most this many adapters at the same time, besides those of the model
    itself. Each slot takes device memory from the start."""
    max_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Adapters of a larger rank are refused. Slots take memory for this rank."""
    target_modules: tuple[str, ...] | None = Field(default=None, strict=False, min_length=1)
    """Adapters may change these linear modules of the model's layers, such as `q_proj`, and no others.
    Without it, they may change all of them. Embeddings, `lm_head` and the experts of a mixture cannot be
    changed."""
    dram_gb: Annotated[GiB, ForAllModels()] = Field(default=1.0, ge=0)
    """The workers of a host keep the files of adapters in this much shared memory."""
    disk_gb: Annotated[GiB, ForAllModels()] = Field(default=20.0, gt=0)
    """The workers of a host keep fetched adapters in this much of the cache directory, and on Kubernetes each
    worker in a volume of its pod. Those that were used longest ago are removed first, and never one that is
    loaded or pinned."""
    allowed_sources: Annotated[tuple[str, ...], ForAllModels(), Live(("router",), at_start=("worker",))] = (
        Field(default=(), strict=False)
    )
    """Adapters that are loaded while the cluster runs must come from below one of these, such as
    `dir:/adapters`, `hub:ORG` or `s3://BUCKET/PREFIX`. Without it, only `models.adapters` are served."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """The address of an S3 server other than AWS, for adapters. Without it, the object class of
    `storageClasses` says it, or `AWS_ENDPOINT_URL`, or AWS is used."""

    @field_validator("target_modules")
    @classmethod
    def _no_embeddings(cls, modules: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Engines would add an adapter to the logits of every step, and of every token of a prompt."""
        for name in EMBEDDINGS.intersection(modules or ()):
            raise ValueError(f"'{name}' is not a linear module of a layer, and adapters cannot change it")
        return modules

    region: str | None = Field(default=None, min_length=1)
    """The region of S3 buckets of adapters. Without it, the object class says it, or `AWS_REGION`."""

    @field_validator("allowed_sources", mode="after")
    @classmethod
    def _known_roots(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        with refusing("source"):
            for root in roots:
                parse_adapter_root(root)
        return roots
