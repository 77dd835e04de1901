"""Engines run adapters when the manifest has a section for them, or names some; what is refused of both."""

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from llmserve.config.load import parse_manifest
from llmserve.config.lora import lora_of
from llmserve.config.plan import plan_local
from llmserve.config.rules import conflicts
from llmserve.config.schema import AdapterSpec, Deployment, Lora, Manifest, Models, ModelSpec
from llmserve.config.schema.section import path_text
from llmserve.core.errors import ManifestError

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


def refused(*adapters: AdapterSpec, **sections: Any) -> list[str]:
    models = Models(primary=ModelSpec(source="org/model")).model_copy(update={"adapters": adapters})
    manifest = Manifest(kind="LLMServe", models=MODELS).model_copy(update={"models": models, **sections})
    return [f"{path_text(one.paths[0])}: {one.message}" for one in conflicts(manifest)]


def adapter(name: str, source: str = "hub:org/name", revision: str | None = None) -> AdapterSpec:
    return AdapterSpec(name=name, source=source, revision=revision)


def test_right_adapters_are_accepted() -> None:
    adapters = (adapter("sql"), adapter("chat", "dir:/adapters/chat"), adapter("v1", revision="v1"))
    assert refused(*adapters, lora=Lora(allowed_sources=("hub:org", "dir:/adapters", "s3://bucket"))) == []


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ((adapter("model"),), "models.adapters[0].name: 'model' is the name of the model, too"),
        (
            (adapter("a"), adapter("b"), adapter("a", "dir:/a")),
            "models.adapters[2].name: 'a' is the name of models.adapters[0], too",
        ),
        (
            (adapter("0" * 64),),
            "models.adapters[0].name: looks like the digest of an adapter; choose another",
        ),
        (
            (adapter("a", "dir:/a", "v1"),),
            "models.adapters[0].revision: adapter source 'dir:/a': only sources of the hub have a revision",
        ),
        (
            (adapter("a", "hub:org/name@v2", "v1"),),
            "models.adapters[0].revision: adapter source 'hub:org/name@v2': it names revision 'v2', and "
            "`revision` is 'v1'",
        ),
    ],
)
def test_names_are_unique_and_revisions_are_of_the_hub(adapters: tuple[AdapterSpec, ...], said: str) -> None:
    (message,) = refused(*adapters)
    assert message.startswith(said)


def test_what_is_wrong_is_found_at_its_line() -> None:
    text = """\
kind: LLMServe
models:
  primary: {source: hub:org/model}
  adapters:
    - {name: model, source: hub:org/a}
    - {name: sql, source: ./sql}
lora:
  slots: 0
"""
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml")
    source, slots = caught.value.message.splitlines()
    assert source.startswith("m.yaml:6: models.adapters[1].source: adapter source './sql': an adapter")
    assert slots == "m.yaml:8: lora.slots: must be at least 1, got 0"
    right = text.replace("./sql", "/adapters/sql").replace("slots: 0", "slots: 1")
    with pytest.raises(ManifestError, match=r"m\.yaml:5: models\.adapters\[0\]\.name: 'model' is the name"):
        parse_manifest(right, "m.yaml")
    assert parse_manifest(right.replace("name: model", "name: a"), "m.yaml").model.adapters[0].name == "a"


@pytest.mark.parametrize("source", ["./a", "hub:name", "package:a/b", "s3:bucket", "dir:here"])
def test_a_source_has_one_of_the_known_shapes(source: str) -> None:
    with pytest.raises(ValidationError, match="an adapter comes from dir:/PATH, hub:ORG/NAME"):
        adapter("a", source)


@pytest.mark.parametrize("root", ["/adapters", "hub:", "dir:", "s3://", "hub:a/b/c"])
def test_allowed_sources_have_one_of_the_known_shapes(root: str) -> None:
    with pytest.raises(ValidationError, match=f"adapter source '{root}': "):
        Lora(allowed_sources=("hub:org", root))


@pytest.mark.parametrize(("dram_gb", "count"), [(1.9, 0), (2.0, 1)])
def test_the_memory_of_adapters_fits_into_a_pod(dram_gb: float, count: int) -> None:
    said = refused(lora=Lora(dram_gb=dram_gb), deployment=Deployment(mode="k8s"))
    assert [one.partition(",")[0] for one in said] == count * [
        "lora.dram_gb: must be less than deployment.k8s.shm_gb (2)"
    ]
    assert refused(lora=Lora(dram_gb=dram_gb)) == []


@pytest.mark.parametrize(
    ("adapters", "roots", "expected"),
    [
        ((), (), "1"),
        ((adapter("a", "dir:/a"),), ("s3://bucket",), "1"),
        ((adapter("a", "hub:org/name"),), (), "0"),
        ((adapter("a", "org/name"),), (), "0"),
        ((), ("dir:/a", "hub:org"), "0"),
    ],
)
def test_workers_may_ask_the_hub_only_for_adapters(
    adapters: tuple[AdapterSpec, ...], roots: tuple[str, ...], expected: str
) -> None:
    models = MODELS.model_copy(update={"adapters": adapters})
    manifest = Manifest(kind="LLMServe", models=MODELS)
    manifest = manifest.model_copy(update={"models": models, "lora": Lora(allowed_sources=roots)})
    made = plan_local(manifest, (0, 1), itertools.count(5000).__next__, ())
    offline = {one.role.is_worker: one.env["HF_HUB_OFFLINE"] for one in made.processes}
    assert offline == {True: expected, False: "1"}
