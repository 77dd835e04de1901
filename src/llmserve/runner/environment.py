"""The paths of a run, and the environment and command of each process in it."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmserve.apiserver.http.listener.shared_port import PortShare
from llmserve.config.plan import ProcessSpec
from llmserve.config.plan_types import BINDING_VARIABLE, fetch_arguments
from llmserve.config.schema import Manifest
from llmserve.core.errors import StartFailed
from llmserve.engines.vllm.environment import PRELOAD_VARIABLE, preloaded
from llmserve.models.adapters.cache import DRAM_VARIABLE
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import (
    CERTIFICATES_NAME,
    CERTIFICATES_VARIABLE,
    SECRET_NAME,
    SECRET_VARIABLE,
    certificates_in,
    make_secret,
)
from llmserve.rpc.role import beside, log_folder
from llmserve.runner.process.child import ProcessCommand
from llmserve.runner.process.family import MEMBER_VARIABLE, SHARED_MEMORY_DIR


@dataclass(frozen=True, slots=True)
class RunPaths:
    """temp_dir: directory of the temporary files and sockets of all roles, removed at the end; its path is
    short, because a socket's must be."""

    manifest: Path
    run_dir: Path
    log_dir: Path
    temp_dir: Path

    @property
    def temporary(self) -> tuple[Path, Path]:
        """All directories that are removed at the end."""
        return self.temp_dir, adapter_dram(self.temp_dir)

    @property
    def secret(self) -> Path:
        """The file of what all processes of the cluster know."""
        return self.temp_dir / SECRET_NAME

    @property
    def certificates(self) -> str | None:
        """The directory with a folder of certificates for each role; None: the cluster uses none."""
        return certificates_in(self.temp_dir)

    def log(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"


def adapter_dram(temp_dir: Path) -> Path:
    """Returns the directory of the adapters that the workers of a cluster keep in memory. It has the name of
    the cluster's temporary directory."""
    return SHARED_MEMORY_DIR / temp_dir.name


def make_paths(
    manifest: Path, run_dir: Path, log_dir: str | None, cluster_id: str, certificates: str | None = None
) -> RunPaths:
    """Makes the temporary directory, with the cluster's secret in it. log_dir: see `log_folder`.
    certificates: security.mtls.directory. Errors: StartFailed."""
    manifest = manifest.absolute()
    logs = log_folder(manifest, run_dir, log_dir)
    try:
        temp_dir = Path(tempfile.mkdtemp(prefix=f"llmserve-{cluster_id[:8]}-"))
    except OSError as error:
        raise StartFailed(f"cannot make a temporary directory: {error.strerror}") from error
    paths = RunPaths(manifest, run_dir, logs, temp_dir)
    try:
        make_secret(paths.secret)
        if certificates is not None:
            (temp_dir / CERTIFICATES_NAME).symlink_to(_certificate_folder(beside(manifest, certificates)))
    except StartFailed:
        shutil.rmtree(temp_dir, ignore_errors=True)
        raise
    return paths


def _certificate_folder(folder: Path) -> Path:
    """Errors: StartFailed."""
    if not folder.is_dir():
        raise StartFailed(
            f"security.mtls.directory: there is no directory {folder}; `llmserve certs init` makes it"
        )
    return folder


def certificate_files(manifest: Manifest, paths: RunPaths) -> dict[str, Path]:
    """Returns the files of certificates that the cluster uses: by role, and that of its HTTP API."""
    tls, roles = manifest.security.tls, paths.certificates
    found = {"http": beside(paths.manifest, tls.certificate)} if tls else {}
    return found | {role: Path(roles) / role / "tls.crt" for role in CallerRole if roles is not None}


def role_mark(cluster_id: str, name: str) -> str:
    return f"{cluster_id}/{name}"


def role_command(
    spec: ProcessSpec,
    paths: RunPaths,
    model_dirs: Mapping[str, str],
    cluster_id: str,
    base: Mapping[str, str],
    share: PortShare | None = None,
) -> ProcessCommand:
    """model_dirs: by the model's name.
    base: the variables that the process inherits from the supervisor's environment. share: what an
    apiserver inherits of a shared port."""
    env = {**base, **spec.env}
    env |= _run_environment(paths, cluster_id, spec.name)
    if BINDING_VARIABLE in spec.env:
        env[PRELOAD_VARIABLE] = preloaded(env.get(PRELOAD_VARIABLE, ""))
    arguments = spec.command(str(paths.manifest), str(paths.run_dir), model_dirs)
    if share is None:
        return ProcessCommand(arguments, env, paths.log(spec.name))
    arguments += ["--port-share", str(share)]
    return ProcessCommand(arguments, env, paths.log(spec.name), (share.socket_fd, share.table_fd))


def fetch_command(paths: RunPaths, name: str, cluster_id: str, base: Mapping[str, str]) -> ProcessCommand:
    """Returns the command that prepares the models (python -m llmserve.models)."""
    env = {**base, **_run_environment(paths, cluster_id, name)}
    return ProcessCommand(fetch_arguments(str(paths.manifest)), env, paths.log(name))


def _run_environment(paths: RunPaths, cluster_id: str, name: str) -> dict[str, str]:
    return {
        MEMBER_VARIABLE: role_mark(cluster_id, name),
        SECRET_VARIABLE: str(paths.secret),
        **({CERTIFICATES_VARIABLE: paths.certificates} if paths.certificates else {}),
        "TMPDIR": str(paths.temp_dir),
        DRAM_VARIABLE: str(adapter_dram(paths.temp_dir)),
        "VLLM_RPC_BASE_PATH": str(paths.temp_dir),
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for the lines to the supervisor
    }
