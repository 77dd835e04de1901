"""The command line: `llmserve COMMAND`. Each command is a module or a folder.

Here a command is chosen and run; every error of ours becomes a message and an exit code.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from llmserve.cli.command import EXIT_FAILED, EXIT_WRONG_USE, Command
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound

# Where each command is. Only the one that is given is imported: all of them take a second of CPU.
COMMANDS: Mapping[str, str] = {
    "up": "up.COMMAND",
    "down": "down.COMMAND",
    "status": "status.COMMAND",
    "logs": "logs.COMMAND",
    "drain": "drain.COMMAND",
    "reload": "reload.COMMAND",
    "explain": "explain.COMMAND",
    "profile": "profile.COMMAND",
    "kv": "kv.COMMAND",
    "models": "models.COMMAND",
    "adapters": "adapters.COMMAND",
    "keys": "keys.COMMAND",
    "apply": "apply.COMMAND",
    "bench": "bench.COMMAND",
    "doctor": "doctor.COMMAND",
    "simulate": "simulate.COMMAND",
    "certs": "certs.COMMAND",
    "schema": "tools.SCHEMA",
    "gen-proto": "tools.GEN_PROTO",
    "version": "tools.VERSION",
}

_ABOUT = """\
Serves large language models with prefill and decode on separate engines. One manifest (YAML) describes
the cluster:

  llmserve apply -f llmserve.yaml     check the manifest, and see what would run
  llmserve up -f llmserve.yaml        run it on this machine, until Ctrl-C
  llmserve status --watch             from another terminal: roles, load, KV blocks, leases
  llmserve logs decode --follow       what its processes write, by time
  llmserve drain decode-0             take a worker out of service; --undo takes it back
  llmserve reload                     after a change of the manifest
  llmserve explain ID                 why a request was served as it was
  llmserve profile decode-0           what its engine computes, and for how long
  llmserve kv stats                   what the tiers of the KV store hold and do
  llmserve models ls                  models on this machine: pull, search, inspect, rm; load, unload, swap
  llmserve adapters ls                LoRA adapters: load, unload, prefetch, pin
  llmserve keys create --tenant red   keys of clients: create, list, revoke
  llmserve bench                      put a load on it, and measure
  llmserve doctor                     what is wrong here, and what to do about it
  llmserve simulate --rate 20         how a load would be served, in virtual time
  llmserve certs init DIR             certificates for its processes (security.mtls)
  llmserve down                       stop it from another terminal
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 (it failed) or 2 (the command line or the manifest is wrong)."""
    given = sys.argv[1:] if arguments is None else arguments
    names: Iterable[str] = given[:1] if given and given[0] in COMMANDS else COMMANDS
    options = _parser(map(import_command, names)).parse_args(given)
    command: Command = options.command
    try:
        return command.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `llmserve schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if not _is_named(error.filename, options):
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_WRONG_USE
    except LLMServeError as error:
        print(error.message, file=sys.stderr)
        return EXIT_WRONG_USE if isinstance(error, InvalidRequest | NotFound) else EXIT_FAILED


def _is_named(file: object, options: argparse.Namespace) -> bool:
    """Returns whether an option names this file, or a file in this folder."""
    named = [Path(value) for value in vars(options).values() if isinstance(value, str | Path)]
    return isinstance(file, str) and any(Path(file) in (one, *one.parents) for one in named)


def import_command(name: str) -> Command:
    module, _, constant = COMMANDS[name].partition(".")
    found: Command = getattr(import_module(f"{__name__}.{module}"), constant)
    return found


def _parser(known: Iterable[Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmserve", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in known:
        one = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(one)
        one.set_defaults(command=command)
    return parser
