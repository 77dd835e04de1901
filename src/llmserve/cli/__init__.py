"""The command line: `llmserve COMMAND`. One module for each command; app.py puts them together."""

from llmserve.cli.app import main

__all__ = ["main"]
