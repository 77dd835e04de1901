"""`llmserve models` on this machine: what is listed, told, converted and removed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmserve.cli import main
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, EXIT_WRONG_USE
from llmserve.cli.models.page import facts_lines, facts_row
from llmserve.core.errors import Unavailable
from llmserve.engines.vllm.architectures import Support
from llmserve.models.converted import ConversionRecord
from llmserve.models.facts import ModelFacts
from llmserve.models.search import HubModel

NAME = "tiny-0123456789abcdef-v1"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without a manifest, and a cache with one converted model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("llmserve.models.local.cache_folder", lambda: tmp_path / "hub")
    folder = tmp_path / "cache" / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((3, 4), np.float16)}, folder / "model.safetensors")
    ConversionRecord("0123456789abcdef", 1, {}).write(folder)
    return folder


@pytest.fixture
def gguf(here: Path, tmp_path: Path) -> Path:
    """The file of which the model was made, as far as names tell."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def manifest(path: Path, source: str) -> Path:
    path.write_text(f"kind: LLMServe\nmodels: {{primary: {{source: '{source}'}}}}\n")
    return path


def test_ls_lists_models_with_their_users(
    here: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path / "llmserve.yaml", f"gguf:{gguf}")
    assert main(["models", "ls", "--json"]) == EXIT_OK
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["missing"], row["folder"]) == (NAME, "", str(here))
    assert row["used_by"] == ["llmserve.yaml"]
    file.write_text("kind: Other")
    assert main(["models", "ls"]) == EXIT_OK, "a wrong manifest uses nothing"
    table = capsys.readouterr().out
    assert f"{NAME}  " in table
    assert "ready" in table


def test_ls_and_pull_tell_of_a_model_without_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "hub" / "models--org--head" / "snapshots" / ("a" * 40)
    head.mkdir(parents=True)
    (head / "config.json").write_text("{}")
    (head / "model.safetensors").write_text("{}")
    note = "no tokenizer: only as a draft or head"
    assert main(["models", "ls", "--json"]) == EXIT_OK
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["note"] for row in rows} == {NAME: "", "org/head": note}
    assert main(["models", "ls"]) == EXIT_OK
    assert note in capsys.readouterr().out
    assert main(["models", "pull", f"dir:{head}"]) == EXIT_OK
    assert capsys.readouterr().out.endswith(f"dir:{head} is ready in {head} ({note})\n")
    (head / "tokenizer.json").write_text("{}")
    assert main(["models", "pull", f"dir:{head}"]) == EXIT_OK
    assert capsys.readouterr().out.endswith(f"dir:{head} is ready in {head}\n")


def test_a_conversion_without_a_tokenizer_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmserve.cli.models.convert_to", lambda source, out, say: out.mkdir())
    out = tmp_path / "out"
    assert main(["models", "convert", str(tmp_path), str(out)]) == EXIT_OK
    assert capsys.readouterr().out == (
        f"{out} is ready: use it as dir:{out} (no tokenizer: only as a draft or head)\n"
    )


def test_rm_refuses_what_a_manifest_uses(
    here: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest(tmp_path / "other.yaml", f"gguf:{gguf}")
    assert main(["models", "rm", NAME, "-f", str(file)]) == EXIT_FAILED
    assert capsys.readouterr().err == f"{NAME} is in use by {file}: it stays\n"
    assert here.is_dir()
    file.write_text("kind: Other")
    assert main(["models", "rm", NAME, "-f", str(file)]) == EXIT_WRONG_USE, "who knows what it uses"
    assert here.is_dir()
    assert main(["models", "rm", NAME]) == EXIT_OK
    assert not here.exists()
    assert main(["models", "rm", NAME]) == EXIT_WRONG_USE


def test_rm_refuses_the_draft_of_a_model(here: Path, gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "llmserve.yaml"
    file.write_text(
        "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"
        f"engine: {{speculation: {{draft: {{source: 'gguf:{gguf}'}}}}}}\n"
    )
    assert main(["models", "rm", NAME]) == EXIT_FAILED
    assert here.is_dir()


def test_rm_refuses_the_model_of_a_running_cluster(
    here: Path,
    gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = manifest(tmp_path / "run.yaml", f"gguf:{gguf}")

    class Running:
        class state:  # noqa: N801 - an attribute
            manifest = str(file)

    monkeypatch.setattr("llmserve.cli.models.in_use.running_here", lambda: [Running])
    assert main(["models", "rm", NAME]) == EXIT_FAILED
    assert f"is in use by {file}: it stays" in capsys.readouterr().err
    assert here.is_dir()


@pytest.fixture
def process_with(here: Path) -> Iterator[int]:
    """A process that was started with the model's directory, as workers are."""
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, "--model-dir", str(here)], stdin=subprocess.PIPE
    ) as process:
        yield process.pid


def test_rm_refuses_the_model_of_a_process(
    here: Path, process_with: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "rm", NAME]) == EXIT_FAILED
    assert f"in use by process {process_with}: it stays" in capsys.readouterr().err
    assert here.is_dir()


def test_inspect_tells_what_a_model_is(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "inspect", f"dir:{here}", "--json"]) == EXIT_OK
    row = json.loads(capsys.readouterr().out)
    assert (row["parameters"], row["longest_tokens"], row["kv_bytes_per_token"]) == (12, 512, 512)
    assert row["lora"] is True
    assert main(["models", "inspect", "hub:org/name"]) == EXIT_FAILED
    assert "hub:org/name is still to be downloaded: llmserve models pull" in capsys.readouterr().err


def test_inspect_needs_no_tokenizer(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most heads have none."""
    monkeypatch.setattr(sys.modules["llmserve.models.resolve"], "cached_snapshot", lambda *asked: here)
    (here / "tokenizer.json").unlink()
    assert main(["models", "inspect", "hub:org/head", "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["parameters"] == 12


FACTS: dict[str, Any] = {
    "architectures": ("Odd",),
    "dtypes": {"BF16": 1_500_000_000},
    "weight_bytes": 3 << 30,
    "quantization": "",
    "longest_tokens": None,
    "layers": None,
    "kv_bytes_per_token": None,
    "windowed": True,
    "has_mtp_layers": True,
    "not_served": ("models of x are not available yet",),
}


def test_what_is_told_of_a_model_that_is_not_served() -> None:
    row = facts_row(ModelFacts(**FACTS), {"Odd": Support(known=False, lora=False)})
    assert list(facts_lines(row)) == [
        "architecture    Odd (not known to the vLLM that is installed)",
        "parameters      1.50 billion, 3.0 GiB of weights",
        "stored as       BF16",
        "context         unknown tokens, unknown layers",
        "KV of a token   not to be told from its configuration",
        "KV groups       several",
        "disaggregated   no: models of x are not available yet",
        "LoRA            no",
        "speculation     ngram, mtp",
    ]


def test_what_is_told_without_vllm_and_of_packed_weights() -> None:
    row = facts_row(ModelFacts(**FACTS | {"quantization": "awq", "not_served": ()}), {"Odd": None})
    lines = list(facts_lines(row))
    assert lines[0] == "architecture    Odd"
    assert lines[1] == "parameters      packed: cannot be counted, 3.0 GiB of weights"
    assert lines[2] == "stored as       awq"
    assert lines[6:8] == [
        "disaggregated   yes, also aggregated",
        "LoRA            not known: vLLM is not installed here",
    ]


def test_search_asks_the_hub_and_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [HubModel("org/tiny", 12345, gated=False), HubModel("org/tiny-2", 7, gated=True)]
    monkeypatch.setattr("llmserve.cli.models.search_hub", lambda text, limit: found[:limit])
    assert main(["models", "search", "TINY"]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["org/tiny", "12345"], ["org/tiny-2", "7"]]
    assert "to be accepted" in lines[2]
    assert lines[-1].startswith(NAME)
    assert main(["models", "search", "tiny", "--json", "--limit", "1"]) == EXIT_OK
    row = json.loads(capsys.readouterr().out)
    assert row["hub"] == [{"name": "org/tiny", "downloads": 12345}]
    assert [one["name"] for one in row["here"]] == [NAME]


def test_a_search_without_a_network_says_so_and_lists_what_is_here(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(text: str, limit: int) -> list[HubModel]:
        raise Unavailable("the hub cannot be asked: no route to host")

    manifest(tmp_path / "llmserve.yaml", f"gguf:{gguf}")
    monkeypatch.setattr("llmserve.cli.models.search_hub", away)
    assert main(["models", "search", "tiny"]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the hub cannot be asked: no route to host. On this machine:"
    assert lines[-1].startswith(NAME)
    assert main(["models", "search", "tiny", "--json"]) == EXIT_OK
    row = json.loads(capsys.readouterr().out)
    assert (row["hub"], row["error"]) == (None, "the hub cannot be asked: no route to host")
    assert [(one["name"], one["used_by"]) for one in row["here"]] == [(NAME, ["llmserve.yaml"])]


def test_pull_prepares_a_source_or_a_manifest(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", f"dir:{here}"]) == EXIT_OK
    assert capsys.readouterr().out.splitlines()[-1] == f"dir:{here} is ready in {here}"
    file = manifest(tmp_path / "m.yaml", f"dir:{here}")
    assert main(["models", "pull", "-f", str(file)]) == EXIT_OK
    assert main(["models", "pull", "hub:a/b", "--revision", "x", "-f", str(file)]) == EXIT_WRONG_USE
    assert "keep one" in capsys.readouterr().err
    (here / "model.safetensors").rename(here / "pytorch_model.bin")
    assert main(["models", "pull", f"dir:{here}"]) == EXIT_WRONG_USE
    assert "its weights are pickles" in capsys.readouterr().err


def test_convert_names_what_is_wrong(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "convert", "none.gguf", "out"]) == EXIT_WRONG_USE
    assert "none.gguf: there is no such file or directory" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main(["models", "convert", str(here), "out"]) == EXIT_WRONG_USE
    assert "out is there already" in capsys.readouterr().err
