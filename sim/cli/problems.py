"""One line for what the user typed wrong."""

from __future__ import annotations

import re
from typing import Any

from kvsim.errors import did_you_mean


def usage_line(error: Any) -> str:
    """The message of typer's usage error ``error``, with a hint, as one line; empty if help was shown."""
    message = str(error.format_message())
    context = getattr(error, "ctx", None)
    if context is None or not message.strip():
        return _one_line(message)
    command = context.command_path
    unknown = re.match(r"No such command '(.*?)'", message)
    if unknown:
        names = getattr(context.command, "commands", {})
        return f"{command} {unknown[1]}: unknown command{did_you_mean(unknown[1], names)}"
    unknown = re.match(r"No such option: '?(--?[\w-]+)", message)
    if unknown:
        names = [
            name for parameter in context.command.params for name in parameter.opts if name.startswith("--")
        ]
        return f"{command} {unknown[1]}: unknown option{did_you_mean(unknown[1], [*names, '--help'])}"
    return f"{command}: {_one_line(message)}; '{command} --help' shows an example"


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
