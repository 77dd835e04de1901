"""The command line: `llmserve COMMAND`. Each command is a module or a folder.

Here a command is chosen and run; every error of ours becomes a message and an exit code.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from llmserve.cli import (
    adapters,
    apply,
    bench,
    certs,
    doctor,
    down,
    drain,
    explain,
    keys,
    kv,
    logs,
    models,
    profile,
    reload,
    simulate,
    status,
    tools,
    up,
)
from llmserve.cli.command import EXIT_FAILED, EXIT_WRONG_USE, Command
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound

COMMANDS: tuple[Command, ...] = (
    up.COMMAND,
    down.COMMAND,
    status.COMMAND,
    logs.COMMAND,
    drain.COMMAND,
    reload.COMMAND,
    explain.COMMAND,
    profile.COMMAND,
    kv.COMMAND,
    models.COMMAND,
    adapters.COMMAND,
    keys.COMMAND,
    apply.COMMAND,
    bench.COMMAND,
    doctor.COMMAND,
    simulate.COMMAND,
    certs.COMMAND,
    tools.SCHEMA,
    tools.GEN_PROTO,
    tools.VERSION,
)

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
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `llmserve schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except LLMServeError as error:
        print(error.message, file=sys.stderr)
        return EXIT_WRONG_USE if isinstance(error, InvalidRequest | NotFound) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmserve", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(one)
        one.set_defaults(command=command)
    return parser
