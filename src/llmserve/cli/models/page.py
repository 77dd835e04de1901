"""Prints what `llmserve models` found. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from llmserve.cli.kv.page import size
from llmserve.cli.screen import table
from llmserve.engines.vllm.architectures import Support
from llmserve.models.facts import ModelFacts
from llmserve.models.local import LocalModel
from llmserve.models.search import HubModel

_COMMIT_LETTERS = 12


def local_row(model: LocalModel, users: Sequence[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "size_bytes": model.size_bytes,
        "folder": str(model.folder),
        "missing": model.missing,
        "note": model.note,
        "revisions": {commit: list(names) for commit, names in model.revisions.items()},
        "used_by": list(users),
    }


def local_page(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not rows:
        return Text("no model is here: see `llmserve models pull`")
    shown = table("NAME", "SIZE", "STATE", "REVISION", "USED BY")
    for row in rows:
        cells = (
            row["name"],
            size(row["size_bytes"]),
            row["missing"] or row["note"] or "ready",
            "\n".join(_revision(commit, names) for commit, names in row["revisions"].items()) or "-",
            "\n".join(row["used_by"]) or "-",
        )
        shown.add_row(*map(escape, cells))
    return shown


def _revision(commit: str, names: Sequence[str]) -> str:
    return " ".join((commit[:_COMMIT_LETTERS], *names))


def hub_page(found: Sequence[HubModel], here: set[str]) -> RenderableType:
    if not found:
        return Text("the hub has no model with safetensors of such a name")
    shown = table("NAME", "DOWNLOADS", "TERMS", "HERE")
    for one in found:
        terms = "to be accepted" if one.gated else "-"
        shown.add_row(escape(one.name), str(one.downloads), terms, "yes" if one.name in here else "-")
    return shown


def facts_row(facts: ModelFacts, support: Mapping[str, Support | None]) -> dict[str, Any]:
    """support: of vLLM, by architecture."""
    known = [one for one in support.values() if one is not None]
    return {
        "architectures": list(facts.architectures),
        "known_to_vllm": any(one.known for one in known) if known else None,
        "parameters": None if facts.quantization else facts.parameters,
        "dtypes": dict(facts.dtypes),
        "quantization": facts.quantization or None,
        "weight_bytes": facts.weight_bytes,
        "longest_tokens": facts.longest_tokens,
        "layers": facts.layers,
        "kv_bytes_per_token": facts.kv_bytes_per_token,
        "kv_groups": "several" if facts.windowed else "one",
        "not_served": list(facts.not_served),
        "lora": any(one.lora for one in known) if known else None,
        "speculation": _methods(facts),
    }


def _methods(facts: ModelFacts) -> list[str]:
    """A head (EAGLE) has layers of its own for one model, so that nothing of a model tells of it. Draft
    models need that all layers see the whole prompt."""
    return ["ngram", *([] if facts.windowed else ["draft"]), *(["mtp"] if facts.has_mtp_layers else [])]


def facts_lines(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"architecture    {', '.join(row['architectures']) or 'not known'}{_of_vllm(row['known_to_vllm'])}"
    parameters = "packed: cannot be counted" if row["parameters"] is None else _count(row["parameters"])
    yield f"parameters      {parameters}, {size(row['weight_bytes'])} of weights"
    yield f"stored as       {row['quantization'] or ', '.join(row['dtypes']) or 'not known'}"
    length, layers = _or_unknown(row["longest_tokens"], "tokens"), _or_unknown(row["layers"], "layers")
    yield f"context         {length}, {layers}"
    per_token = row["kv_bytes_per_token"]
    yield f"KV of a token   {size(per_token) if per_token else 'not to be told from its configuration'}"
    yield f"KV groups       {row['kv_groups']}"
    why_not = "; ".join(row["not_served"])
    yield f"disaggregated   {f'no: {why_not}' if why_not else 'yes, also aggregated'}"
    yield f"LoRA            {_YES_NO[row['lora']]}"
    yield f"speculation     {', '.join(row['speculation'])}"


_YES_NO = {True: "yes", False: "no", None: "not known: vLLM is not installed here"}


def _of_vllm(known: bool | None) -> str:
    return "" if known is None else "" if known else " (not known to the vLLM that is installed)"


def _or_unknown(value: int | None, unit: str) -> str:
    return f"{value} {unit}" if value is not None else f"unknown {unit}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"
