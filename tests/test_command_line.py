"""Arguments of the commands without Hydra: python -m pytest tests/test_command_line.py"""

import pytest
from pydantic import Field

from errors import UserError
from training.command_line import from_cli
from training.config import StrictModel


class Config(StrictModel):
    runs: list[str] = Field(min_length=1)
    out: str | None = None
    split: str = "test"
    steps: int | None = None
    plain: bool = False


def read(*args: str) -> Config:
    return from_cli(Config, args, "", positional=("runs",))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a", "b"], {"runs": ["a", "b"]}),
        (["checkpoints/lr=1", "a"], {"runs": ["checkpoints/lr=1", "a"]}),  # a path may hold a `=`
        (["runs=[a,b]"], {"runs": ["a", "b"]}),
        (["a", "out=123"], {"out": "123"}),  # texts are taken as they are typed
        (["a", "out=x #1"], {"out": "x #1"}),
        (["a", "out='x y'"], {"out": "x y"}),
        (["a", "out=null"], {"out": None}),
        (["a", "split=null"], {"split": None}),
        (["a", "--out", "x", "--plain", "--steps=3"], {"out": "x", "plain": True, "steps": 3}),
    ],
)
def test_what_is_typed(args, expected, capsys):
    if expected.get("split", "test") is None:  # null is no text
        with pytest.raises(ValueError, match="split: Input should be a valid string"):
            read(*args)
        return
    found = read(*args).model_dump()
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "--out"], "--out needs a value"),
        (["a", "--out", "--plain"], "--out needs a value"),
        (["a", "--plian"], "unknown config key 'plian'; did you mean 'plain'?"),
        (["a", "splt=val"], "unknown config key 'splt'; did you mean 'split'?"),
        (["runs=[a"], "cannot read the arguments"),
        (["a", "steps=x"], "steps: Input should be a valid integer"),
        (["out=x"], "runs: Field required"),
    ],
)
def test_what_is_refused(args, message):
    with pytest.raises(UserError) as refused:
        read(*args)
    assert message in str(refused.value)


def test_help_lists_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as left:
        from_cli(Config, ["--help"], "What it does.")
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "What it does."
    assert [line.split()[0] for line in lines[2:]] == ["runs=…", "out=null", "split=test", "steps=null", "plain=false"]
