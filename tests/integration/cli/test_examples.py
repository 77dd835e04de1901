"""Every manifest that we ship is refused with a reason, or starts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHIPPED = [ROOT / "llmserve.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
REFUSED = {"gpu.yaml": "spec.engine.device: is cuda, and no GPU is visible here"}
# With the tests that start it, or render it; with what starts it for them.
STARTED = {
    "adapters.yaml": "integration/cli/test_adapter_commands.py",
    "aggregated.yaml": "integration/cli/test_bench.py",
    "batches.yaml": "integration/cli/test_reload_and_explain.py",
    "k8s.yaml": "unit/k8s/test_render_valid.py",
    "llmserve.yaml": "e2e",
    "secure.yaml": "integration/cli/test_secure.py",
    "sim.yaml": "integration/survival",
    "speculation.yaml": "support/observed.py",
    "two-models.yaml": "integration/cli/test_two_models.py",
    "two-routers.yaml": "integration/cli/test_one_port.py",
}
pytestmark = pytest.mark.timeout(300)


def _apply(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmserve.cli", "apply", "-f", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_none_is_forgotten() -> None:
    assert sorted(path.name for path in SHIPPED) == sorted((*REFUSED, *STARTED))
    for name, tests in STARTED.items():
        files = [path] if (path := ROOT / "tests" / tests).is_file() else path.glob("*.py")
        assert any(name in file.read_text() for file in files), f"{tests} does not start {name}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_apply_says_whether_it_would_start(path: Path) -> None:
    done = _apply(path)
    if (reason := REFUSED.get(path.name)) is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 2
        assert f"{path}:" in done.stderr
        assert reason in done.stderr


def test_apply_names_what_its_roles_would_refuse_with_the_line(tmp_path: Path) -> None:
    """With the vLLM that is here, and the model of the example."""
    text = (ROOT / "llmserve.yaml").read_text()
    wrong = text.replace("max_model_len: 2048", "max_model_len: 9000").replace("hermes", "hermess")
    path = tmp_path / "llmserve.yaml"
    path.write_text(wrong)
    done = _apply(path)
    assert done.returncode == 2
    assert "spec.engine.tool_call_parser: vLLM has no parser 'hermess'; did you mean 'hermes'?" in done.stderr
    line = next(at for at, text in enumerate(wrong.splitlines(), 1) if "hermess" in text)
    assert f"{path}:{line}: spec.engine.tool_call_parser" in done.stderr
    up = [sys.executable, "-m", "llmserve.cli", "up", "-f", str(path)]
    started = subprocess.run(up, capture_output=True, text=True, timeout=60, check=False)
    assert (started.returncode, started.stderr, started.stdout) == (2, done.stderr, "")
