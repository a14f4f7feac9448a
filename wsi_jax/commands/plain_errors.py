"""What is typed wrong ends a command with one line that says how to type it."""

import sys
from typing import Any

from typer.core import TyperGroup

from wsi_jax.run.config_file import nearest_or_all, no_such_flag


class PlainGroup(TyperGroup):
    """Commands whose parser says what is wrong in one line."""

    def resolve_command(self, context: Any, words: list[str]) -> tuple:
        """The command that the words begin with.

        Raises:
            SystemExit: there is none of this name.
        """
        if not words[0].startswith("-") and words[0] not in self.commands:
            near = nearest_or_all(words[0], list(self.commands))
            raise SystemExit(f"{words[0]}: no such command{near}")
        return super().resolve_command(context, words)

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Parses a command line and runs its command; arguments as typer's."""
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
        except Exception as error:
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            raise SystemExit(parser_message(error)) from None
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def parser_message(error: Any) -> str:
    """What the parser of a command line refuses, and the mend."""
    kind, message = type(error).__name__, " ".join(error.message.split())
    if kind == "NoArgsIsHelpError":
        return error.format_message()
    if kind == "NoSuchOption":
        flags = [flag for one in error.ctx.command.params for flag in one.opts]
        return no_such_flag(error.option_name, flags)
    if kind == "BadOptionUsage":
        return f"{error.option_name}: give it a value"
    parameter = getattr(error, "param", None)
    if parameter is None:
        return message
    flag = max(parameter.opts, key=len)
    name = flag if flag.startswith("-") else parameter.name.upper()
    if kind == "MissingParameter":
        return f"{name} is missing: {parameter.help}"
    for word, wanted in {"integer": "whole number", "number": "number"}.items():
        if word in message:
            return f"{name}: not a {wanted}; write one, as {name}=1"
    return f"{name}: {message.removeprefix('Value error, ')}"
