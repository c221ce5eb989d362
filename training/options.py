"""The options of a command: a typed model of them, `key=value` on the command line, and what `--help` says of the keys.

What follows the first `=` is the value as the shell has handed it over: a text may hold anything (`=`, blanks, quotes,
`#`, any alphabet), a list is written [a,b], the rest are numbers, `true`, `false` and `null`. Nothing here loads
PyTorch.
"""

import difflib
import os
import re
import textwrap
from collections.abc import Collection, Sequence
from typing import Annotated, Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from errors import UserError, describe_validation_error

WIDTH = 120
AS_TYPED = {"as_typed": True}  # `json_schema_extra` of a field whose text may be anything, `null` and quotes included
Fields = dict[str, FieldInfo]


UNFIT = re.compile("[\0\ud800-\udfff]")  # half of a pair stands for a byte that is not UTF-8


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, value, info: ValidationInfo):
        annotation = cls.model_fields[info.field_name].annotation
        value = _as_word(value, annotation)
        if isinstance(value, bool) and annotation not in (bool, bool | str):
            raise ValueError("Input should not be true or false")
        if isinstance(value, int) and value.bit_length() > 1024:
            raise ValueError("Input should be a smaller number")  # Python would not even write it
        if isinstance(value, str) and UNFIT.search(value):
            raise ValueError("Input should be UTF-8 text without a NUL character")
        return value

    @classmethod
    def type_for(cls, values: Any) -> type["StrictModel"]:
        """The type that these values are checked against: this one, unless a subclass knows better."""
        return cls

    @classmethod
    def retired(cls) -> Collection[str]:
        """Dotted keys of earlier versions that did nothing and no longer exist."""
        return ()


def _as_word(value: Any, annotation: Any) -> Any:
    """`on` or `off` for a field of these words, which YAML takes for booleans; any other value as it is."""
    if isinstance(value, bool) and "off" in get_args(annotation):
        return "on" if value else "off"
    return value


def validate(model: type[StrictModel], values: dict[str, Any]) -> Any:
    """`model(**values)`, or a `UserError` that names each key and, for an unknown one, the nearest known."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        unknown = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "extra_forbidden"]
        if unknown:
            known = list(keys_of(model, values))
            raise UserError("; ".join(_unknown_key(key, known, model.retired()) for key in unknown)) from None
        raise UserError(describe_validation_error(error, str)) from None


def _unknown_key(key: str, known: list[str], retired: Collection[str]) -> str:
    if key in retired:
        return f"{key} no longer exists: leave it out (in the config of an old run it is passed over)"
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown config key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "; see --help")


def keys_of(model: type[StrictModel], values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> pydantic's field, of all levels; `values` say which types they have."""
    keys = {}
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, StrictModel):
            keys |= keys_of(nested.type_for(values.get(name)), values, f"{prefix}{name}.")
        else:
            keys[prefix + (field.alias or name)] = field
    return keys


def from_cli(model: type[StrictModel], args: Sequence[str], about: str, positional: Sequence[str] = ()) -> Any:
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
            return None if text == "null" else unquoted(text)
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
        return [unquoted(text)]
    if not text.endswith("]"):
        raise UserError(f"cannot read the arguments: '{key}={text}' is not a list [a,b]")
    parts = re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", text[1:-1])
    return [unquoted(part.strip()) for part in parts if part.strip()]


def unquoted(text: str) -> str:
    """Without quotes that the shell has left around the whole."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _is_list(field: FieldInfo) -> bool:
    return _holds_list(field.annotation)


def _holds_list(kind: Any) -> bool:
    """Whether it is a list, or has one as an alternative, perhaps with what is checked of it."""
    inner = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    return get_origin(kind) is list or (get_origin(kind) is not dict and any(_holds_list(one) for one in inner))


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
    value = _as_word(value, field.annotation)
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
