"""Engines run adapters when the manifest has a section for them, or names some."""

import pytest
from pydantic import ValidationError

from llmserve.config.lora import lora_of
from llmserve.config.schema import AdapterSpec, Lora, Manifest, Models, ModelSpec

ADAPTERS = (AdapterSpec(name="red", source="dir:/adapters/red"),)
MODELS = Models(primary=ModelSpec(source="org/model"))


def test_adapters_of_embeddings_are_refused_where_they_are_named() -> None:
    assert Lora(target_modules=("q_proj",)).target_modules == ("q_proj",)
    with pytest.raises(ValidationError, match="'lm_head' is not a linear module"):
        Lora(target_modules=("q_proj", "lm_head"))


@pytest.mark.parametrize(
    ("lora", "adapters", "expected"),
    [
        (None, (), None),
        (None, ADAPTERS, Lora()),
        (Lora(), (), Lora()),
        (Lora(slots=2), ADAPTERS, Lora(slots=2)),
    ],
)
def test_the_section_or_a_named_adapter_turns_them_on(
    lora: Lora | None, adapters: tuple[AdapterSpec, ...], expected: Lora | None
) -> None:
    models = MODELS.model_copy(update={"adapters": adapters})
    manifest = Manifest(kind="LLMServe", models=MODELS).model_copy(update={"models": models, "lora": lora})
    assert lora_of(manifest) == expected
