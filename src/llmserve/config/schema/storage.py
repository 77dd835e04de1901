"""Section `storageClasses`: the tiers that keep KV blocks."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, ManifestSection


class EncryptionKey(ManifestSection):
    """A key that blocks are encrypted with, by reference: the key itself is never in the manifest."""

    id: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="Its name, stored with every block that it encrypts, in the clear.",
        ),
    ]
    env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="Environment variable of the kvmanager that holds it: 32 bytes as 64 hexadecimal "
            "digits or in base64.",
        ),
    ] = None
    file: Annotated[
        str | None, Field(min_length=1, description="File that holds it, instead of a variable.")
    ] = None


class StorageFormat(ManifestSection):
    """How a tier stores blocks: quantized, compressed, encrypted, in this order, each or none."""

    quantize: Annotated[
        Literal["none", "int8", "fp8"],
        Field(
            description="One byte for each number, and a scale for each group of them: half the bytes of "
            "bfloat16, and answers that can differ (docs/kv-formats.md has the errors)."
        ),
    ] = "none"
    compress: Annotated[
        Literal["none", "zstd"], Field(description="Lossless; about a third less of bfloat16 KV.")
    ] = "none"
    encrypt: Annotated[
        tuple[EncryptionKey, ...],
        Field(
            strict=False,
            description="Keys of AES-256-GCM, the oldest first: new blocks get the last, blocks under the "
            "others stay readable. Without any, blocks are not encrypted.",
        ),
    ] = ()


class StorageClass(ManifestSection):
    """One tier below device memory where KV blocks are kept."""

    name: Annotated[str, Field(min_length=1, description="What log lines and metrics call it.")]
    tier: Annotated[
        Literal["dram", "nvme", "object"],
        Field(
            description="What it is made of. Exactly one is `dram`: workers copy from and to it. At most one "
            "is `nvme`."
        ),
    ]
    capacity_gb: Annotated[
        float,
        KeyUnit("GiB"),
        Field(
            gt=0,
            description="How much it may take, in all kvmanagers together. Of `dram`, all of it is taken at "
            "the start; of the others, what was removed and is not reclaimed yet counts; blocks fill "
            "about three quarters.",
        ),
    ]
    location: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Directory of an nvme tier, its own and absolute, with one in it for each kvmanager; "
            "URL of an object tier: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, "
            "`az://ACCOUNT/CONTAINER/PREFIX` or `file:///DIRECTORY`. Credentials are those of "
            "the kvmanager's environment.",
        ),
    ] = None
    endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://\S+$",
            description="Address of an S3 server that is not AWS. Without it, `AWS_ENDPOINT_URL` or AWS.",
        ),
    ] = None
    region: Annotated[
        str | None, Field(min_length=1, description="Region of an S3 bucket. Without it, `AWS_REGION`.")
    ] = None
    write: Annotated[
        Literal["auto", "back", "through"],
        Field(
            description="When blocks are written to it. `back`: when they must leave DRAM and no faster tier "
            "takes them. `through`: as soon as they are stored. `auto`: as soon as they were asked for "
            "again, unless the tier is busy; otherwise as `back`."
        ),
    ] = "auto"
    format: Annotated[StorageFormat, Field(description="How blocks are stored.")] = StorageFormat()
