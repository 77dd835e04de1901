"""Section `batches`: `/v1/files` and `/v1/batches`."""

from typing import Annotated

from pydantic import Field

from llmserve.config.schema.section import GiB, KeyUnit, Live, ManifestSection, Requests, Seconds

Lines = Annotated[int, KeyUnit("lines")]


class Batches(ManifestSection):
    """Batches of requests in files, which run when interactive requests leave room. docs/batches.md explains
    them."""

    enabled: bool = True
    """The apiservers serve `/v1/files` and `/v1/batches`. On Kubernetes this also needs a `location`, because
    pods keep no files."""
    location: str | None = Field(default=None, min_length=1)
    """Files and the state of batches are kept here: in a directory, as an absolute path, or below a URL
    `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://ACCOUNT/CONTAINER/PREFIX`, whose credentials come from
    the apiserver's environment. Without it, the directory `batches` in the run directory is used."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """The address of an S3 server other than AWS. Without it, `AWS_ENDPOINT_URL` or AWS is used."""
    region: str | None = Field(default=None, min_length=1)
    """The region of an S3 bucket. Without it, `AWS_REGION` is used."""
    weight: Annotated[float, Live(("router",))] = Field(default=0.1, ge=0.01, le=1)
    """A tenant's batches have this part of the tenant's weight while other requests wait. To set the weight
    or the budget of one tenant's batches, name `TENANT (batches)` in `scheduling.weights` or
    `budgets.tenants`."""
    concurrency: Requests = Field(default=32, ge=1, le=4096)
    """Each apiserver runs at most this many lines of batches at the same time, divided evenly between
    tenants."""
    max_file_mb: Annotated[int, KeyUnit("MiB")] = Field(default=200, ge=1, le=10_240)
    """An uploaded file may have this size."""
    max_lines: Lines = Field(default=50_000, ge=1, le=1_000_000)
    """A batch may have this many requests."""
    tenant_gb: GiB = Field(default=10.0, gt=0)
    """The files of one tenant may take this much. Further uploads and batches are refused until files are
    deleted or expire; results of batches that run are kept in any case."""
    keep_seconds: Seconds = Field(default=30 * 86400.0, ge=3600)
    """Files are deleted this long after they were made, unless their upload or batch says otherwise. So are
    batches, once they have ended."""
