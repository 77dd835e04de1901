"""The command line of the apiserver, and the options it gives."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmserve.apiserver.http.listener.shared_port import PortShare
from llmserve.config.schema import Manifest, ServedModel
from llmserve.core.addresses import with_brackets
from llmserve.core.errors import InvalidRequest
from llmserve.models import resolve
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.role import addresses, common_flags, report_progress

DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model that was prepared. name: that for clients. directory: config, tokenizer, chat template; its
    weights are not read here."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class ApiserverOptions:
    """http: host:port. models: those of the manifest, in its order. drain_seconds: for running requests at
    the stop. manifest: the file, for `/admin/reload`; manifest_text: what it said at the start. share: of a
    port that other processes serve too. compiles_ahead: the process that compiles grammars prepares now, not
    at the first grammar. run_dir: the directory for files of the cluster; None: a pod has none."""

    name: str
    http: str
    routers: RouterAddresses
    models: tuple[ModelDirectory, ...]
    drain_seconds: float = DRAIN_SECONDS
    manifest: Path | None = None
    manifest_text: str = ""
    share: PortShare | None = None
    compiles_ahead: bool = False
    run_dir: str | None = None

    @property
    def directory(self) -> Path:
        """The directory that relative paths of the manifest start at."""
        return Path() if self.manifest is None else self.manifest.parent

    @property
    def model_directories(self) -> Mapping[str, Path]:
        return {model.name: model.directory for model in self.models}


def flags() -> argparse.ArgumentParser:
    parser = common_flags("apiserver", listens=False)
    parser.add_argument("--http", required=True, type=with_brackets, help="host:port of the HTTP API")
    parser.add_argument(
        "--port-share",
        type=PortShare.parse,
        metavar="SOCKET:TABLE:INDEX",
        help="inherited descriptors of a port that several apiservers serve, in addition to --http",
    )
    parser.add_argument("--router", required=True, type=addresses, help="host:port,... of each router")
    parser.add_argument(
        "--model-dir",
        action="append",
        metavar="[NAME=]DIR",
        help="a prepared model, which is prepared here when not given; with NAME= when there are several",
    )
    parser.add_argument(
        "--drain-seconds", type=float, default=DRAIN_SECONDS, help="for running requests at stop"
    )
    return parser


def options(given: argparse.Namespace, manifest: Manifest, text: str = "") -> ApiserverOptions:
    """Prepares the models whose directories were not given. text: of the manifest's file. Errors:
    ModelNotFound; InvalidRequest for a directory of no model."""
    directories = model_directories(given.model_dir or (), [one.served_name for one in manifest.served])
    return ApiserverOptions(
        name=given.name,
        http=given.http,
        routers=RouterAddresses(given.router, Credentials.read(CallerRole.APISERVER, given.name)),
        models=tuple(_prepared(model, directories) for model in manifest.served),
        drain_seconds=given.drain_seconds,
        manifest=Path(given.manifest),
        manifest_text=text,
        share=given.port_share,
        compiles_ahead=manifest.engine.kind == "vllm",
        run_dir=given.run_dir,
    )


def model_directories(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Returns the directories of `--model-dir` by model. names: those of all models; their directories are
    `NAME=DIR`, and that of an only model is `DIR`. Errors: InvalidRequest for a directory of no model."""
    found: dict[str, Path] = {}
    for text in given:
        name = next((one for one in names if text.startswith(f"{one}=")), None)
        if name is None and len(names) > 1:
            raise InvalidRequest(f"--model-dir {text} has to be NAME=DIR, with one of {', '.join(names)}")
        found[name or names[0]] = Path(text if name is None else text.removeprefix(f"{name}="))
    return found


def _prepared(model: ServedModel, directories: Mapping[str, Path]) -> ModelDirectory:
    name = model.served_name
    if name not in directories:
        report_progress(f"preparing the model {model.source}")
    return ModelDirectory(name, directories.get(name) or Path(resolve(model).path))
