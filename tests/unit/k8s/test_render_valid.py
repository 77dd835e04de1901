"""Kubernetes takes what is rendered, from 1.28 to the newest; and deploy/k8s is what is rendered today."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmserve import __version__
from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest, StorageClass
from llmserve.config.schema.security import InternalTls
from llmserve.k8s.render import Object, RenderTarget, render, render_model
from llmserve.k8s.render.objects import KUSTOMIZATION, files
from tests.support.kube_schemas import validate, versions

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy" / "k8s"
IMAGE = f"llmserve:{__version__}"


def manifests() -> Iterator[Manifest]:
    for path in (ROOT / "llmserve.yaml", *sorted((ROOT / "examples").glob("*.yaml"))):
        manifest = load_manifest(path)
        keys = manifest.security.keys
        if manifest.deployment.replicas.router > 1 or (keys and keys.file):
            continue  # refused: test_render.py
        deployment = manifest.deployment
        k8s = deployment.k8s.model_copy(update={"secret": "keys"})
        yield manifest.model_copy(update={"deployment": deployment.model_copy(update={"k8s": k8s})})
    manifest = load_manifest(ROOT / "examples" / "k8s.yaml")
    deployment = manifest.deployment
    k8s = deployment.k8s.model_copy(update={"manage_models": True})
    yield manifest.model_copy(update={"deployment": deployment.model_copy(update={"k8s": k8s})})
    yield manifest.model_copy(
        update={
            "storageClasses": (StorageClass(name="n", tier="nvme", capacity_gb=9.0, location="/kv"),),
            "security": manifest.security.model_copy(update={"mtls": InternalTls()}),
        }
    )


def objects() -> list[Object]:
    target = RenderTarget("prod", IMAGE)
    found = [one for manifest in manifests() for one in render(manifest, target)]
    managed = next(one for one in manifests() if one.deployment.k8s.manage_models)
    return [*found, *render_model(managed, target, {"llmserve/order": "{}"})]


@pytest.mark.parametrize("version", versions())
def test_strictly_valid(version: str) -> None:
    for one in objects():
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):  # no part of Kubernetes
            validate(one, version)


def test_the_versions_are_those_that_we_promise() -> None:
    known = [".".join(one.split(".")[:2]) for one in versions()]
    assert known[0] == "1.28"
    assert known[-1] >= "1.37"


def test_files_hold_the_objects_and_the_kustomization_names_them() -> None:
    rendered = render(load_manifest(ROOT / "llmserve.yaml"), RenderTarget("prod", IMAGE))
    texts = files(rendered)
    names = yaml.safe_load(texts[KUSTOMIZATION])["resources"]
    assert [yaml.safe_load(texts[name]) for name in names] == list(rendered)
    assert {*names, KUSTOMIZATION} == texts.keys()


def test_deploy_holds_the_rendered_default() -> None:
    """llmserve up -f llmserve.yaml --mode k8s --image llmserve:VERSION --out deploy/k8s  (make deploy)"""
    expected = files(render(load_manifest(ROOT / "llmserve.yaml"), RenderTarget("llmserve", IMAGE)))
    there = {path.name: path.read_text() for path in DEPLOY.iterdir()}
    assert there == expected
