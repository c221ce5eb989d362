"""The command line: `key=value` for every command, and what `--help` says of the keys.

What follows the first `=` is the value as the shell has handed it over: a text may hold anything (`=`, blanks, quotes,
`#`, any alphabet), a list is written [a,b], the rest are numbers, `true`, `false` and `null`. Training composes its
config from the files in config/ with Hydra, whose grammar of overrides is not the user's business.
"""

import difflib
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from errors import UserError, first_line
from files import read_yaml
from training.config import PretrainConfig, hydra_error, keys_of, resolved, validate

WIDTH = 120
AS_TYPED = {"as_typed": True}  # `json_schema_extra` of a field whose text may be anything, `null` and quotes included
Fields = dict[str, FieldInfo]


def from_cli(model: type[BaseModel], args: Sequence[str], about: str, positional: Sequence[str] = ()) -> Any:
    """Read `model` from arguments of the form `key=value`; without any, or with `--help`, print the keys and exit.

    `--key value`, `--key=value` and, for a switch, `--key` mean the same. Words without `=`, and paths with one, are
    the values of those keys in `positional` that are not given by name, in this order; if the last of these keys is a
    list, it takes all the words that are left.
    """
    fields = keys_of(model, {})
    if not args or {"-h", "--help"} & set(args):
        print(f"{about.strip()}\n\n{describe(fields)}")
        raise SystemExit(0 if args else 2)
    named, words = _sorted_out(args, fields, positional)
    return validate(model, named | _by_position(words, named, fields, positional))


def _sorted_out(args: Sequence[str], fields: Fields, positional: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """-> the values that are given by name, and the words."""
    named: dict[str, Any] = {}
    words: list[str] = []
    rest = iter(args)
    for arg in rest:
        key, equals, value = arg.partition("=")
        if arg.startswith("--"):
            key = key.removeprefix("--").replace("-", "_")
            if not equals:
                is_switch = key not in fields or fields[key].annotation is bool  # an unknown key is refused as such
                value = "true" if is_switch else next(rest, "")
                if value == "" or value.startswith("--"):
                    raise UserError(f"--{key} needs a value (see --help)")
        elif not equals or (positional and key not in fields and ("/" in key or os.path.exists(arg))):
            words.append(arg)
            continue
        named[key] = value_of(key, value, fields.get(key))
    return named, words


def _by_position(
    words: list[str], named: dict[str, Any], fields: Fields, positional: Sequence[str]
) -> dict[str, str | list[str]]:
    values: dict[str, str | list[str]] = {}
    for key in positional:
        if _is_list(fields[key]) and words and key in named:
            raise UserError(f"'{words[0]}' and {key}=… both give {key}; write all of them in one of the two ways")
        if key in named or not words:
            continue
        count = len(words) if _is_list(fields[key]) else 1
        values[key] = words[:count] if _is_list(fields[key]) else words[0]
        words = words[count:]
    if words:
        raise UserError(f"'{words[0]}' is not of the form key=value (see --help)")
    return values


def value_of(key: str, text: str, field: FieldInfo | None) -> Any:
    """What the text means as a value of this field; None is for a key that no field has, such as a whole section.

    What cannot be read remains the text, which the typed config then refuses by name. Raises `UserError` for a list
    that does not end, and for several values where one belongs.
    """
    if field is not None:
        if field.json_schema_extra == AS_TYPED:
            return text
        if _is_list(field):
            return _items(key, text)
        kinds = get_args(field.annotation) or (field.annotation,)
        if str in kinds and not (bool in kinds and text.lower() in ("true", "false")):
            return None if text == "null" else _unquoted(text)
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except (HydraException, ValueError, RecursionError):  # ValueError: an integer of thousands of digits
        return text
    if override.is_sweep_override():
        if field is None:
            return text
        raise UserError(f"{key}={text} gives several values; a run has one, so start one for each")
    return override.value()


def _items(key: str, text: str) -> list[str] | None:
    """`[a,b]` -> its items, which may be in quotes; any other text is the one item."""
    if text == "null":
        return None
    if not text.startswith("["):
        return [_unquoted(text)]
    if not text.endswith("]"):
        raise UserError(f"cannot read the arguments: '{key}={text}' is not a list [a,b]")
    parts = re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", text[1:-1])
    return [_unquoted(part.strip()) for part in parts if part.strip()]


def _unquoted(text: str) -> str:
    """Without quotes that the shell has left around the whole."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(kind) is list for kind in (field.annotation, *get_args(field.annotation)))


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


class RunArguments(NamedTuple):
    """The arguments of pretrain.py, sorted out."""

    config_dirs: list[Path]  # the repository's config/, and those of --config-dir
    config_name: str
    choices: dict[str, str]  # of a group of configs, `arch` or `experiment`: the files in its folder
    values: list[tuple[str, str]]  # key, text


GROUPS = {"arch": "", "experiment": "+"}  # what Hydra wants before the choice
_SINGLE_OPTIONS = ("--config-dir", "-cd", "--config-name", "-cn")


def run_arguments(config_dir: str, args: Sequence[str]) -> RunArguments:
    """Read `[+]key=value`, `--config-dir <folder>` and `--config-name <name>`. Raises `UserError` for anything else.

    `key=` and `+key=` mean the same: the typed config decides which keys exist.
    """
    found = RunArguments([Path(config_dir)], "cfg_pretrain", {}, [])
    rest = iter(args)
    for arg in rest:
        if arg.startswith("-"):
            name, equals, value = arg.partition("=")
            if name not in _SINGLE_OPTIONS:
                raise UserError(_unknown_option(name))
            value = value if equals else next(rest, "")
            if not value:
                raise UserError(f"{name} needs a value (see --help)")
            if name in ("--config-name", "-cn"):
                found = found._replace(config_name=value.removesuffix(".yaml"))
            elif os.path.isdir(value):
                found.config_dirs.append(Path(value).resolve())
            else:
                raise UserError(f"{name} {value}: there is no such folder; name one that holds arch/ or experiment/")
            continue
        match = re.fullmatch(r"\+{0,2}([A-Za-z_][\w.]*)=(.*)", arg, re.DOTALL)
        if arg.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise UserError(f"'{arg}': Hydra's own settings cannot be changed; checkpoint_path is the run's folder")
        if match is None:
            raise UserError(f"'{arg}' is not of the form key=value (see --help)")
        key, text = match.groups()
        if key == "experiment" and text == "null":
            found.choices.pop(key, None)
        elif key in GROUPS:
            found.choices[key] = _unquoted(text)
        else:
            found.values.append((key, text))
    return found


def _unknown_option(name: str) -> str:
    if name in ("-m", "--multirun"):
        return f"{name}: pretrain.py does one run; start it once for each"
    key = name.lstrip("-").replace("-", "_")
    hint = f"; a key is given as {key}=<value>" if key in keys_of(PretrainConfig, {}) else " (see --help)"
    return f"unknown option {name}{hint}"


def compose_run(config_dir: str, args: Sequence[str]) -> DictConfig:
    """The config of a run as the files in `config_dir` and the arguments make it; `from_hydra` gives it its types.

    Raises `UserError` for arguments and files that cannot be read.
    """
    given = run_arguments(config_dir, args)
    names = {"": given.config_name} | given.choices
    for group, name in names.items():
        for part in name.strip("[]").split(",") if name.startswith("[") else [name]:
            _check_choice(given.config_dirs, group, part.strip())
    overrides = [f"{GROUPS[group]}{group}={_as_choice(name)}" for group, name in given.choices.items()]
    if len(given.config_dirs) > 1:
        folders = ",".join(_quoted(f"file://{folder}") for folder in given.config_dirs[1:])
        overrides.append(f"hydra.searchpath=[{folders}]")
    try:
        with initialize_config_dir(config_dir, version_base=None):
            cfg = compose(given.config_name, overrides)
        _set_values(cfg, given.values)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise hydra_error(error) from None
    return cfg


def _set_values(cfg: DictConfig, values: list[tuple[str, str]]) -> None:
    """Set each key to what its text means, whether or not the config has it."""
    fields: Fields = {}
    for key, text in sorted(values, key=lambda value: value[0] != "arch.name"):  # which says what keys there are
        if not fields and key != "arch.name":
            fields = keys_of(PretrainConfig, OmegaConf.to_container(cfg, resolve=False))
        value = _unquoted(text) if key == "arch.name" and text != "null" else value_of(key, text, fields.get(key))
        try:
            OmegaConf.update(cfg, key, value, merge=True, force_add=True)
        except (OmegaConfBaseException, TypeError, AttributeError, AssertionError) as error:
            raise UserError(f"cannot set {key}={text}: {first_line(error)}") from None


def _check_choice(config_dirs: Sequence[Path], group: str, name: str) -> None:
    """Raise `UserError` if there is no such file, or it cannot be read; the nearest that exist are named."""
    name = name.removesuffix(".yaml")
    is_below = name and ".." not in name and not name.startswith("/")
    places = [folder / group / f"{name}.yaml" for folder in config_dirs] if is_below else []
    for place in places:
        if os.path.isfile(place):  # also where the name is too long for a file
            read_yaml(place, "mend it, or choose another")
            return
    known = _choices(config_dirs, group)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
    where = "/".join(filter(None, ("config", group, f"{name}.yaml")))
    raise UserError(f"there is no {where}; {hint}")


def _as_choice(name: str) -> str:
    return name if name.startswith("[") else _quoted(name)


def _quoted(text: str) -> str:
    """A text as Hydra's grammar takes it, whatever it holds."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


def _choices(config_dirs: Iterable[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in config_dirs for path in Path(folder, group).glob("*.yaml")})


def pretrain_help(about: str, config_dir: str, args: Sequence[str]) -> str:
    """Describe every key of a training run, with the value that it has under the arguments `args`."""
    args = [arg for arg in args if arg not in ("-h", "--help")]
    values = resolved(compose_run(config_dir, args))
    dirs = run_arguments(config_dir, args).config_dirs
    groups = "\n".join(f"    {key}  {', '.join(_choices(dirs, key))}" for key in GROUPS)
    keys = describe(keys_of(PretrainConfig, values), _flat(values))
    return f"{about.strip()}\n\nChoices (arch=NAME, +experiment=NAME):\n\n{groups}\n\nKeys:\n\n{keys}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
