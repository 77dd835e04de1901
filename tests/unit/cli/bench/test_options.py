"""Options of `llmserve bench`, and the two shapes of one manifest."""

import argparse
from pathlib import Path

import pytest
import yaml

from llmserve.cli import main
from llmserve.cli.bench import COMMAND
from llmserve.cli.bench.compare import shapes_of
from llmserve.cli.bench.run import adapters_of, api_key, load_of, target_of, ways_of
from llmserve.config.load import parse_manifest
from llmserve.core.errors import InvalidRequest, ManifestError
from llmserve.loadgen.prompts import PromptForm
from llmserve.loadgen.workload import AdapterMix

ROOT = Path(__file__).parents[4]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    COMMAND.configure(parser)
    return parser.parse_args(arguments)


def test_defaults_are_a_closed_loop_of_a_minute_with_another_seed_each_time() -> None:
    load, other = load_of(options()), load_of(options())
    assert (load.is_open, load.concurrency, load.seconds, load.count) == (False, 8, 60.0, None)
    assert [(kind.name, kind.part) for kind in load.mix.kinds] == [("short", 70.0), ("chat", 30.0)]
    assert load.seed != other.seed


def test_a_number_of_requests_lifts_the_limit_of_time() -> None:
    assert load_of(options("--requests", "5")).seconds is None
    assert load_of(options("--requests", "5", "--seconds", "9")).seconds == 9.0


def test_a_trace_is_played_to_its_end_at_its_speed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 5, "output_length": 2}\n'
        '{"timestamp": 4000, "input_length": 5, "output_length": 2, "tenant": "b"}\n'
    )
    load = load_of(options("--trace", str(path), "--speed", "2", "--tenants", "a=k"))
    assert load.is_open
    assert load.seconds is None
    assert [(one.starts_at, one.tenant) for one in load.scheduled()] == [(0.0, "a"), (2.0, "b")]


def test_what_is_sent_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_API_KEY", "secret")
    given = options(
        "--extra-body", '{"ignore_eos": null, "top_p": 0.9}', "--prompts", "chat", "--timeout", "5"
    )
    target = target_of(given, "http://x", "m")
    assert target.extra == {"temperature": 0, "ignore_eos": None, "top_p": 0.9}
    assert (dict(target.keys), target.timeout_seconds) == ({"default": "secret"}, 5.0)
    assert target.default_key == "secret"
    assert ways_of(given).form is PromptForm.CHAT


async def _three(url: str, key: str | None, tls: bool = True) -> list[str]:
    return ["x", "y", "z"]


async def test_adapters_are_named_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.cli.bench.run.listed_adapters", _three)

    async def asked(*arguments: str) -> AdapterMix | None:
        return await adapters_of(options(*arguments), "http://x", None)

    assert await asked() is None
    assert await asked("--adapters", "2") == AdapterMix(("x", "y"), 1.0)
    assert await asked("--adapters", "b", "a", "--zipf", "0") == AdapterMix(("b", "a"), 0.0)
    for number in ("4", "0"):
        with pytest.raises(InvalidRequest, match=f"--adapters {number}: the endpoint lists 3"):
            await asked("--adapters", number)


def test_keys_of_the_environment() -> None:
    assert api_key(None, {}) is None
    assert api_key("plain", {}) == "plain"
    assert api_key("@K", {"K": "secret"}) == "secret"
    with pytest.raises(InvalidRequest, match="@K"):
        api_key("@K", {})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "0"),
        ("--rate", "1", "--concurrency", "2"),
        ("--spread", "2"),
        ("--turns", "0"),
        ("--warmup", "-1"),
        ("--burstiness", "-1"),
        ("--token-ids", "9-3"),
        ("--extra-body", "[]"),
        ("--extra-body", "{"),
        ("compare",),
        ("compare", "both"),
    ],
)
def test_wrong_use_is_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_wrong_mix_is_refused_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:1", "--mix", "huge:1"]) == 2
    assert "--mix 'huge:1'" in capsys.readouterr().err


def shapes(tmp_path: Path, disaggregated: bool, **replicas: int) -> dict[str, tuple[bool, dict[str, int]]]:
    document = yaml.safe_load((ROOT / "examples" / "sim.yaml").read_text())
    document["spec"]["deployment"] = {"disaggregated": disaggregated, "replicas": replicas}
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(document))
    for changed in shapes_of(path).documents.values():
        parse_manifest(yaml.safe_dump(changed), "changed")
    deployments = {name: one["spec"]["deployment"] for name, one in shapes_of(path).documents.items()}
    return {name: (one["disaggregated"], one["replicas"]) for name, one in deployments.items()}


def test_both_shapes_have_as_many_engines(tmp_path: Path) -> None:
    assert shapes(tmp_path, True, prefill=2, decode=4) == {
        "agg": (False, {"prefill": 0, "decode": 6}),
        "disagg": (True, {"prefill": 2, "decode": 4}),
    }
    assert shapes(tmp_path, False, decode=3)["disagg"] == (True, {"prefill": 1, "decode": 2})


def test_one_of_several_models_is_compared_alone(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "examples" / "sim.yaml").read_text())
    large = {"source": "hub:a/large", "replicas": {"prefill": 1, "decode": 3}, "tenants": ["red"]}
    document["spec"]["models"] = [large, {"source": "hub:a/small", "disaggregated": False}]
    document["spec"]["deployment"] = {"replicas": {"prefill": 1, "decode": 2}}
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(document))
    for name, engines in (("large", 4), ("small", 2)):
        found = shapes_of(path, name)
        assert (found.model, found.engines) == (name, engines)
        for shape, changed in found.documents.items():
            loaded = parse_manifest(yaml.safe_dump(changed), "changed")
            assert loaded.model.served_name == name
            deployment = loaded.alone(loaded.model).deployment
            assert deployment.disaggregated is (shape == "disagg")
            assert deployment.replicas.prefill + deployment.replicas.decode == engines
    assert shapes_of(path).model == "large"
    assert parse_manifest(yaml.safe_dump(shapes_of(path).documents["agg"]), "m").model.tenants == ("red",)
    with pytest.raises(ManifestError, match="there is no model 'tiny'; there is large, small"):
        shapes_of(path, "tiny")


def test_one_engine_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="two engines"):
        shapes(tmp_path, False, decode=1)


def test_what_is_no_url_is_refused_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("127.0.0.1:8000", "nonsense", "ftp://h"):
        assert main(["bench", "--url", url]) == 2
        assert capsys.readouterr().err == f"--url {url!r}: write http://HOST:PORT\n"
