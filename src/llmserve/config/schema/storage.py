"""Section `storageClasses`: the tiers that keep KV blocks."""

from typing import Literal

from pydantic import Field

from llmserve.config.schema.section import GiB, ManifestSection


class EncryptionKey(ManifestSection):
    """A reference to a key that blocks are encrypted with. The key itself is never in the manifest."""

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """The key's name is stored in the clear with every block that the key encrypts."""
    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """This environment variable of the kvmanager holds the key: 32 bytes as 64 hexadecimal digits or in
    base64."""
    file: str | None = Field(default=None, min_length=1)
    """This file holds the key, instead of a variable."""


class StorageFormat(ManifestSection):
    """The format of stored blocks. They are quantized, compressed and encrypted in this order; each step is
    optional. A dram class has only the first."""

    quantize: Literal["none", "int8", "fp8"] = "none"
    """Each number takes one byte, and each group of numbers has a scale. That halves the size of bfloat16,
    and answers can differ (docs/kv-formats.md has the errors). In a dram class workers quantize, on a GPU in
    its memory, and the classes below keep what they get."""
    compress: Literal["none", "zstd"] = "none"
    """Lossless compression removes about a third of bfloat16 KV."""
    encrypt: tuple[EncryptionKey, ...] = Field(default=(), strict=False)
    """Keys of AES-256-GCM, the oldest first. New blocks use the last key, and blocks under the other keys
    stay readable. Without keys, blocks are not encrypted."""


class StorageClass(ManifestSection):
    """A tier below device memory that keeps KV blocks."""

    name: str = Field(min_length=1)
    """Log lines and metrics use this name."""
    tier: Literal["dram", "nvme", "object"]
    """The kind of storage. Exactly one class is `dram`, because workers copy from it and to it. At most one
    is `nvme`."""
    capacity_gb: GiB = Field(gt=0)
    """The class takes at most this much, summed over all kvmanagers. A `dram` class takes all of it at the
    start. Blocks fill 95% of an nvme class, and about three quarters of an object class, where removed blocks
    count until their space is reclaimed."""
    location: str | None = Field(default=None, min_length=1)
    """For an nvme tier: the absolute path of a directory of its own, in which each kvmanager has a directory.
    For an object tier: a URL `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://ACCOUNT/CONTAINER/PREFIX` or
    `file:///DIRECTORY`. Credentials come from the kvmanager's environment."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """The address of an S3 server other than AWS. Without it, `AWS_ENDPOINT_URL` or AWS is used."""
    region: str | None = Field(default=None, min_length=1)
    """The region of an S3 bucket. Without it, `AWS_REGION` is used."""
    write: Literal["auto", "back", "through"] = "auto"
    """When blocks are written to the class. `back` writes them when they must leave DRAM and no faster tier
    takes them. `through` writes them as soon as they are stored. `auto` writes them when they are requested
    again, unless the tier is busy, and otherwise as `back` does."""
    format: StorageFormat = StorageFormat()
