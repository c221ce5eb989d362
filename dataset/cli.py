"""The command line of the builders: one pydantic config, `--help` with every default, one-line errors.

Mind two properties of argdantic 1.3.3 when declaring options: a list option is *merged into* a non-empty default,
so lists default to `[]` and the builder fills in its own; and help texts go through `%` formatting, so a literal per
cent sign is written `%%`.
"""

from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Callable
from typing import Any, NoReturn

from argdantic import ArgParser
from pydantic import ValidationError

from errors import UserError, describe_validation_error, one_line_errors


class _BuilderParser(ArgParser):
    def _format_validation_error(self, exception: ValidationError) -> NoReturn:
        raise UserError(
            describe_validation_error(exception, lambda field: "--" + field.replace("_", "-")) + " (see --help)"
        ) from None


def run_builder(build: Callable[[Any], None]) -> None:
    """Run `build(config)`, with its config read from the command line; `--help` begins with its docstring."""
    parser = _BuilderParser()
    parser.command(singleton=True)(build)
    parser.entrypoint = parser._build_entrypoint()
    parser.entrypoint.formatter_class = ArgumentDefaultsHelpFormatter
    parser.entrypoint.error = _refuse
    with one_line_errors():
        parser()


def _refuse(message: str) -> NoReturn:
    """Replaces argparse's error, which would print the whole usage first."""
    raise UserError(f"{message} (see --help)")
