"""The command line of training, which composes its config from the files in config/ with Hydra.

Its values are read as those of the other commands (training/options.py): Hydra's grammar of overrides is not the user's
business.
"""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from errors import UserError, first_line
from files import read_yaml
from training.config import PretrainConfig, hydra_error, resolved
from training.options import Fields, describe, keys_of, unquoted, value_of


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
            found.choices[key] = unquoted(text)
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
        value = unquoted(text) if key == "arch.name" and text != "null" else value_of(key, text, fields.get(key))
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
