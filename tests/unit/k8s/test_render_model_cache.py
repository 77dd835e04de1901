"""Where pods keep models and what was compiled for them: each its own, or all and new nodes on one volume."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmserve.engines.vllm import environment
from llmserve.k8s.render import Object
from tests.unit.k8s.conftest import Parse, Render

CLAIM = "deployment: {k8s: {model_cache_claim: models}}"
_WRITTEN = ("LLMSERVE_CACHE_DIR", "HF_HOME")
_COMPILED = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def _pod(objects: dict[str, Object], role: str) -> Object:
    spec: Object = objects[f"Deployment demo-{role}"]["spec"]["template"]["spec"]
    return spec


def _env(container: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def _volume_of(pod: Object, container: Object, path: str) -> Object:
    """Returns the volume on which a container has a path, without its name."""
    mounts = [one for one in container["volumeMounts"] if path.startswith(f"{one['mountPath']}/")]
    name = max(mounts, key=lambda one: len(one["mountPath"]))["name"]
    (found,) = (one for one in pod["volumes"] if one["name"] == name)
    return {key: value for key, value in found.items() if key != "name"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(CLAIM, {"persistentVolumeClaim": {"claimName": "models"}}), ("", {"emptyDir": {}})],
)
@pytest.mark.parametrize("role", ["prefill", "decode", "apiserver"])
def test_models_are_staged_and_read_on_one_volume(
    parse: Parse, rendered: Render, role: str, text: str, expected: Object
) -> None:
    """The init container fetches them; the process finds them there, and so does another pod on a claim."""
    pod = _pod(rendered(parse(text)), role)
    (fetcher,), (process,) = pod["initContainers"], pod["containers"]
    for name in _WRITTEN:
        path = _env(process)[name]
        assert _env(fetcher)[name] == path
        assert _volume_of(pod, fetcher, path) == _volume_of(pod, process, path) == expected


def test_those_without_models_have_no_volume_for_them(parse: Parse, rendered: Render) -> None:
    assert "state" not in {one["name"] for one in _pod(rendered(parse(CLAIM)), "router")["volumes"]}


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """What a test sets in the environment is undone."""
    before = dict(os.environ)
    yield before
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("text", [CLAIM, ""])
def test_what_one_pod_compiles_another_finds(
    parse: Parse, rendered: Render, tmp_path: Path, environ: dict[str, str], text: str
) -> None:
    """Each pod has its own root, and on a claim the same volume; prefill and decode share it, too."""
    objects, found = rendered(parse(text)), dict[str, dict[str, str]]()
    for name, role in (("first", "decode"), ("second", "decode"), ("third", "prefill")):
        pod = _pod(objects, role)
        (container,) = pod["containers"]
        for variable, path in _env(container).items():
            if path.startswith("/"):
                volume = _volume_of(pod, container, f"{path}/")
                place = tmp_path / ("claim" if "persistentVolumeClaim" in volume else name)
                os.environ[variable] = f"{place}{path}"
        for variable in _COMPILED:
            os.environ.pop(variable, None)
        environment.set_engine_environment(compiles=True, on_cpu=True)
        found[name] = {variable: os.environ[variable] for variable in _COMPILED}
        written = Path(found[name]["TORCHINDUCTOR_CACHE_DIR"], name)
        written.touch()
    assert (found["first"] == found["second"] == found["third"]) is bool(text)
    assert {path.name for path in written.parent.iterdir()} == (set(found) if text else {"third"})
