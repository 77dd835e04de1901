"""The decoders of what others send, each with the errors that it may raise.

Whatever else a decoder raises is a defect: its caller does not expect it. Checksums are made to fit, since no
fuzzer guesses one, and an attacker computes it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from bench.fuzz import requests, stored, wires
from bench.fuzz.case import FuzzCase

TARGETS: Mapping[str, Callable[[], FuzzCase]] = MappingProxyType(
    {
        "side-channel": wires.side_channel,
        "ucx": wires.ucx,
        "tcp": wires.tcp,
        "descriptions": wires.descriptions,
        "credentials": wires.credentials,
        "block-header": stored.block_header,
        "archive": stored.archive,
        "pack-index": stored.pack_index,
        "removals": stored.removals,
        "safetensors": stored.safetensors,
        "http-body": requests.http_body,
        "batch-lines": requests.batch_lines,
        "grammar": requests.grammar,
    }
)
