"""Combinations of right values that are refused. Pure; called by load.py.

Only the rules of adapters and of speculation read `models`, so that all others are checked even while the
model is missing.
"""

from collections.abc import Iterator

from llmserve.config.conflict import Conflict
from llmserve.config.engine_options import option_rules
from llmserve.config.lora import adapter_memory, adapter_rules
from llmserve.config.refusals import wire_refusals
from llmserve.config.rules import deployment, engine, security, storage
from llmserve.config.schema import Manifest
from llmserve.config.several_models import conflict_in_file, distinct_names, keys_for_all
from llmserve.config.speculation import speculation_rules

_RULES = (
    *deployment.RULES,
    *engine.RULES,
    option_rules,
    *security.RULES,
    *storage.RULES,
    adapter_rules,
    adapter_memory,
    wire_refusals,
    speculation_rules,
)


def conflicts(manifest: Manifest) -> Iterator[Conflict]:
    """Yields the conflicts of all rules, those of several models once for each of them."""
    yield from distinct_names(manifest)
    yield from keys_for_all(manifest)
    for model in manifest.served:
        alone = manifest.alone(model)
        for rule in _RULES:
            yield from (conflict_in_file(manifest, model, found) for found in rule(alone))
