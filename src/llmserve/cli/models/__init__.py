"""`llmserve models`: looks after the models on this machine, and those of a running cluster."""

import argparse
import json
from pathlib import Path

from llmserve.cli.command import EXIT_OK, Actions, Command, Run, add_json, count
from llmserve.cli.models.cluster import add_cluster_actions
from llmserve.cli.models.in_use import users_of
from llmserve.cli.models.page import facts_lines, facts_row, hub_page, local_page, local_row
from llmserve.cli.screen import screen
from llmserve.config.load import load_manifest
from llmserve.config.schema import ModelSpec
from llmserve.config.speculation import loaded_draft
from llmserve.core.errors import InvalidRequest, LLMServeError, Unavailable
from llmserve.engines.vllm.architectures import support_here
from llmserve.models import default_cache_dir, resolve
from llmserve.models.converted import convert_to
from llmserve.models.directory import limits
from llmserve.models.facts import model_facts
from llmserve.models.local import local_model, local_models, remove
from llmserve.models.resolve import PreparationStage, survey
from llmserve.models.search import HubModel, search_hub

_ABOUT = """\
Looks after the models on this machine: those of the hub in its client's cache, and converted ones.

  llmserve models ls                              what is here, and who uses it
  llmserve models pull hub:org/name               download (or go on with it), check and convert a model
  llmserve models pull -f llmserve.yaml           all models of a manifest, as `up` does it
  llmserve models search qwen3                    look on the hub, and here
  llmserve models inspect hub:org/name            size, context, KV, and what LLMServe can do with it
  llmserve models convert model.gguf DIR          GGUF, or a directory with pickles, to safetensors
  llmserve models rm org/name                     make room; a model in use stays

And after those of the cluster that runs here (or of -f, --run-dir, --router):

  llmserve models served                          its models, and how far those are that come or go
  llmserve models load hub:org/name --name small  start a model's engines, and wait until it answers
  llmserve models load small --swap large         the same in the place of another model, which leaves
  llmserve models unload small                    let its requests end, and stop its engines
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = Actions[Run](parser)

    def of_source(one: argparse.ArgumentParser, nargs: str | None = None) -> None:
        one.add_argument(
            "source", metavar="SOURCE", nargs=nargs, help="as in a manifest: hub:ORG/NAME, dir:/…"
        )
        one.add_argument("--revision", metavar="REV", help="a commit, tag or branch of the hub")

    add_cluster_actions(actions)
    listing = actions.add("ls", _ls, "list the models on this machine")
    pull = actions.add("pull", _pull, "download, check and convert a model, or those of a manifest")
    of_source(pull, "?")
    search = actions.add("search", _search, "look for models on the hub and on this machine")
    search.add_argument("text", metavar="TEXT", help="a part of the name")
    search.add_argument("--limit", type=count, default=20, metavar="N", help="at most (default: %(default)s)")
    inspect = actions.add(
        "inspect", _inspect, "tell what a model on this machine is, and what can be done with it"
    )
    of_source(inspect)
    convert = actions.add("convert", _convert, "make a directory of safetensors of a GGUF file or of pickles")
    convert.add_argument(
        "source", metavar="SOURCE", type=Path, help="a GGUF file, or a directory with pickles"
    )
    convert.add_argument("out", metavar="DIR", type=Path, help="the directory that is to be made")
    removal = actions.add("rm", _rm, "remove a model from this machine, unless it is in use")
    removal.add_argument("name", metavar="NAME", help="as `llmserve models ls` names it")
    for one in (listing, search, inspect):
        add_json(one)
    for one in (listing, pull, removal):
        one.add_argument("-f", "--file", metavar="FILE", help="the manifest (default: llmserve.yaml)")


def _run(options: argparse.Namespace) -> int:
    run: Run = options.action
    return run(options)


# -- actions


def _ls(options: argparse.Namespace) -> int:
    rows = [
        local_row(model, list(users_of(model, options.file, strict=False)))
        for model in local_models(default_cache_dir())
    ]
    print(json.dumps(rows, indent=2)) if options.json else screen().print(local_page(rows))
    return EXIT_OK


def _pull(options: argparse.Namespace) -> int:
    for spec in _wanted(options):
        model = resolve(spec, progress=_say)
        print(f"{spec.source} is ready in {model.path}{_note(model.path)}")
    return EXIT_OK


def _wanted(options: argparse.Namespace) -> list[ModelSpec]:
    if options.source and options.file:
        raise InvalidRequest("SOURCE and -f name two things that are to be pulled; keep one")
    if options.source:
        return [_spec(options)]
    manifest = load_manifest(options.file or "llmserve.yaml")
    drafts = (loaded_draft(manifest.alone(model)) for model in manifest.served)
    return [*manifest.served, *filter(None, drafts)]


def _spec(options: argparse.Namespace) -> ModelSpec:
    return ModelSpec(source=options.source, revision=options.revision)


def _search(options: argparse.Namespace) -> int:
    here = [one for one in local_models(default_cache_dir()) if options.text.lower() in one.name.lower()]
    found: list[HubModel] | None = None
    why = ""
    try:
        found = list(search_hub(options.text, options.limit))
    except Unavailable as error:
        why = error.message
    rows = [local_row(model, list(users_of(model, None, strict=False))) for model in here]
    if options.json:
        hub = None if found is None else [{"name": one.name, "downloads": one.downloads} for one in found]
        print(json.dumps({"hub": hub, "error": why or None, "here": rows}, indent=2))
        return EXIT_OK
    page = f"{why}. On this machine:" if found is None else hub_page(found, {one.name for one in here})
    screen().print(page)
    if found is None or here:
        screen().print(local_page(rows))
    return EXIT_OK


def _inspect(options: argparse.Namespace) -> int:
    seen = survey(_spec(options), proposes=True)  # nothing that is told needs a tokenizer
    if seen.stage is not PreparationStage.READY:
        raise LLMServeError(f"{options.source} is still {seen.stage}: llmserve models pull {options.source}")
    facts = model_facts(Path(seen.place))
    row = facts_row(facts, {name: support_here(name) for name in facts.architectures})
    print(json.dumps(row, indent=2) if options.json else "\n".join(facts_lines(row)))
    return EXIT_OK


def _convert(options: argparse.Namespace) -> int:
    if not options.source.exists():
        raise InvalidRequest(f"{options.source}: there is no such file or directory")
    try:
        convert_to(options.source.absolute(), options.out.absolute(), _say)
    except OSError as error:
        raise LLMServeError(f"{options.out} cannot be written: {error}") from error
    print(f"{options.out} is ready: use it as dir:{options.out.absolute()}{_note(options.out)}")
    return EXIT_OK


def _note(folder: Path) -> str:
    return f" ({found})" if (found := limits(folder)) else ""


def _rm(options: argparse.Namespace) -> int:
    model = local_model(options.name, default_cache_dir())
    if users := list(users_of(model, options.file, strict=True)):
        raise LLMServeError(f"{model.name} is in use by {', '.join(users)}: it stays")
    remove(model)
    print(f"{model.name} is removed")
    return EXIT_OK


def _say(text: str) -> None:
    print(text, flush=True)


COMMAND = Command("models", "list, download, inspect and remove models", _ABOUT, _configure, _run)
