"""The command line: `llmserve COMMAND`. Each command is a module or a folder; app.py puts them together."""

from llmserve.cli.app import main

__all__ = ["main"]
