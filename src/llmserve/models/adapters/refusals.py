"""Finds adapters of the manifest that this machine cannot have, before anything is started. It asks neither
the hub nor a bucket, and reads no weights: workers check all of that."""

from collections.abc import Iterator, Sequence

from llmserve.buckets.connect import BucketAddress
from llmserve.config.adapter_source import AdapterSourceKind, parse_adapter_source
from llmserve.config.conflict import Conflict
from llmserve.config.schema import AdapterSpec
from llmserve.core.errors import LLMServeError
from llmserve.models.adapters.places import place_of, sizes_of


def adapter_refusals(adapters: Sequence[AdapterSpec]) -> Iterator[Conflict]:
    """Yields what another try would not cure: directories that hold no adapter, packages that are missing."""
    for index, spec in enumerate(adapters):
        source = parse_adapter_source(spec.source, spec.revision)
        try:
            place = place_of(source, BucketAddress(""))
            if source.kind is AdapterSourceKind.DIRECTORY:
                sizes_of(place, source)
        except LLMServeError as error:
            yield Conflict((("models", "adapters", index, "source"),), error.message)
