"""The command line: `key=value` for every command, and what `--help` says of the keys.

Training composes its config with Hydra; the other commands read theirs here. The words of the help are the
descriptions of the fields.
"""

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from errors import UserError
from training.config import PretrainConfig, keys_of, validate

WIDTH = 120
AS_TYPED = {"as_typed": True}  # `json_schema_extra` of a field whose text may be anything, `null` and quotes included


def from_cli(model: type[BaseModel], args: Sequence[str], about: str, positional: Sequence[str] = ()) -> Any:
    """Read `model` from arguments of the form `key=value`; without any, or with `--help`, print the keys and exit.

    `--key value`, `--key=value` and, for a switch, `--key` mean the same. Words without `=` are the values of the keys
    `positional`, in this order; if the last of these keys is a list, it takes all the words that are left.
    """
    if not args or {"-h", "--help"} & set(args):
        print(f"{about.strip()}\n\n{describe(keys_of(model, {}))}")
        raise SystemExit(0 if args else 2)
    fields = keys_of(model, {})
    try:
        texts, pairs = _sorted_out(args, fields, positional)
        values = OmegaConf.to_container(OmegaConf.from_cli(pairs))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"cannot read the arguments: {error}") from None
    return validate(model, texts | values)


def _sorted_out(
    args: Sequence[str], fields: dict[str, Any], positional: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """-> values that are taken as typed, and `key=value` arguments for YAML to read.

    YAML would read a Sudoku of digits as a number, and what follows a `#` as a comment.
    """
    texts: dict[str, Any] = {}
    pairs: list[str] = []
    waiting, rest = list(positional), iter(args)
    for arg in rest:
        key, equals, value = arg.partition("=")
        if arg.startswith("--"):
            key = key.removeprefix("--").replace("-", "_")
            if not equals:
                is_switch = key not in fields or fields[key].annotation is bool  # an unknown key is refused as such
                value = "true" if is_switch else next(rest, "")
                if value == "" or value.startswith("--"):
                    raise UserError(f"--{key} needs a value (see --help)")
        elif not equals or (waiting and key not in fields and "/" in key):  # a path may hold a `=`
            if not waiting:
                raise UserError(f"'{arg}' is not of the form key=value (see --help)")
            value, key = arg, waiting[0]
            if _is_list(fields[key]):
                texts.setdefault(key, []).append(value)
                continue
            waiting.pop(0)
        if key in fields and _is_text(fields[key]):
            texts[key] = value if fields[key].json_schema_extra == AS_TYPED else _null_or_text(value)
        else:
            pairs.append(f"{key}={value}")
    return texts, pairs


def _null_or_text(value: str) -> str | None:
    """`null` is no text, and quotes that the shell has left around the whole are not meant."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return None if value == "null" else value


def _is_text(field: Any) -> bool:
    return field.annotation in (str, str | None)


def _is_list(field: Any) -> bool:
    return getattr(field.annotation, "__origin__", None) is list


def describe(fields: dict[str, Any], values: dict[str, Any] | None = None) -> str:
    """One or more lines for each key: its name, its default or value, and its meaning."""
    shown = {key: _default(field, (values or {}).get(key, PydanticUndefined)) for key, field in fields.items()}
    column = min(38, max(len(key) + len(text) for key, text in shown.items()) + 5)
    lines = []
    for key, field in fields.items():
        head = f"    {key}={shown[key]}".ljust(column)
        meaning = field.description or ""
        if len(head) > column:
            lines.append(head)
            head = " " * column
        lines += textwrap.wrap(meaning, WIDTH, initial_indent=head + "  ", subsequent_indent=" " * (column + 2)) or [
            head.rstrip()
        ]
    return "\n".join(lines)


def _default(field: Any, value: Any) -> str:
    value = field.default if value is PydanticUndefined else value
    if value is PydanticUndefined or value is None:
        return "…" if field.is_required() else "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def pretrain_help(about: str, config_dir: str, config_name: str, args: Sequence[str]) -> str:
    """Describe every key of a training run, with the value that it has under the overrides `args`."""
    folders, overrides = _config_folders(args)
    with initialize_config_dir(config_dir, version_base=None):
        if folders:
            overrides.append(f"hydra.searchpath=[{','.join(f'file://{Path(folder).resolve()}' for folder in folders)}]")
        values = OmegaConf.to_container(compose(config_name, overrides), resolve=True)
    groups = "\n".join(
        f"    {key}  {', '.join(_choices([config_dir, *folders], key))}" for key in ("arch", "experiment")
    )
    keys = describe(keys_of(PretrainConfig, values), _flat(values))
    return f"{about.strip()}\n\nChoices (arch=NAME, +experiment=NAME):\n\n{groups}\n\nKeys:\n\n{keys}"


def _config_folders(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """-> the folders that Hydra's `--config-dir` adds, and the overrides."""
    folders, overrides, rest = [], [], iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name in ("--config-dir", "-cd"):
            folders.append(value if equals else next(rest, ""))
        elif equals:
            overrides.append(arg)
    return folders, overrides


def _choices(config_dirs: Sequence[str], group: str) -> list[str]:
    return sorted({path.stem for folder in config_dirs for path in Path(folder, group).glob("*.yaml")})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def accept_plain_overrides() -> None:
    """Let `key=value` and `+key=value` both mean "set it": the typed config decides which keys exist.

    Hydra alone would ask for `+` if a key is not in the YAML, and say nothing about a misspelt key given with `+`.
    Choices from a config group keep Hydra's meaning, with or without the `+` of `+experiment=`.
    """
    for i, arg in enumerate(sys.argv[1:], start=1):
        match = re.match(r"\+{0,2}([A-Za-z_][\w.]*)=", arg)
        if not match or match[1].split(".")[0] == "hydra":
            continue
        prefix = {"arch": "", "experiment": "+"}.get(match[1], "++")
        sys.argv[i] = prefix + arg.lstrip("+")


def hydra_error(error: HydraException | OmegaConfBaseException) -> UserError:
    """Hydra's several lines as one."""
    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read the override '{error.override.lstrip('+')}'; quote lists and spaces")
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return UserError(re.sub(r"\s*(Config search path|Set the environment variable|\[?provider=).*", "", text))
