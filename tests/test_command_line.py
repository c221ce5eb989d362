"""Arguments of the commands, and of training: python -m pytest tests/test_command_line.py"""

import re
from functools import reduce
from typing import Annotated, Literal, get_args

import pytest
import yaml
from pydantic import Field

from errors import UserError
from tests.launch import ROOT
from training.command_line import compose_run, pretrain_help
from training.config import PretrainConfig, from_hydra, load_config
from training.options import StrictModel, from_cli, keys_of


class Config(StrictModel):
    runs: list[str] = Field(min_length=1)
    out: str | None = None
    split: str = "test"
    steps: int | None = None
    plain: bool = False
    parts: Annotated[list[Literal["x", "y"]], Field(max_length=2)] | None = None


def read(*args: str) -> Config:
    return from_cli(Config, args, "", positional=("runs",))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a", "b"], {"runs": ["a", "b"]}),
        (["checkpoints/lr=1", "a"], {"runs": ["checkpoints/lr=1", "a"]}),  # a path may hold a `=`
        (["runs=[a,b]"], {"runs": ["a", "b"]}),
        (["a", "parts=x"], {"parts": ["x"]}),
        (["a", "parts=null"], {"parts": None}),
        (["a", "out=123"], {"out": "123"}),  # texts are taken as they are typed
        (["a", "out=x #1"], {"out": "x #1"}),
        (["a", "out='x y'"], {"out": "x y"}),
        (["a", "out=null"], {"out": None}),
        (["a", "split=null"], {"split": None}),
        (["a", "--out", "x", "--plain", "--steps=3"], {"out": "x", "plain": True, "steps": 3}),
        (["runs=a b"], {"runs": ["a b"]}),  # one value is a list of one
        (["runs=[ünï/a=1, 'b,c', #d]"], {"runs": ["ünï/a=1", "b,c", "#d"]}),
        (["lr=1", "a"], {"runs": ["lr=1", "a"]}),  # a folder that is there
        (["a", 'out=ünï ~(x), "y"=#${z}'], {"out": 'ünï ~(x), "y"=#${z}'}),
        (["a", "steps=null"], {"steps": None}),
        (["a", "steps=1e3"], {"steps": 1000}),
        (["a", "plain=yes"], {"plain": True}),
    ],
)
def test_what_is_typed(args, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
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
        (["a", "runs=[c]"], "'a' and runs=… both give runs"),
        (["a", "steps=1,2"], "steps=1,2 gives several values"),
        (["a", "steps=" + 5000 * "9"], "steps: "),
        (["a", "out=\udcff"], "out: Input should be UTF-8 text"),
        (["x" * 5000 + "=1"], "unknown config key"),
        (["a", "out=\0"], "out: Input should be UTF-8 text without a NUL"),
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
    expected = ["runs=…", "out=null", "split=test", "steps=null", "plain=false", "parts=null"]
    assert [line.split()[0] for line in lines[2:]] == expected


class Moved(StrictModel):
    source: str
    target: str


def test_words_are_the_keys_that_are_not_named():
    for args in (["a", "b"], ["source=a", "b"], ["b", "source=a"], ["a", "target=b"]):
        assert from_cli(Moved, args, "", ("source", "target")).model_dump() == {"source": "a", "target": "b"}
    with pytest.raises(UserError, match="'c' is not of the form key=value"):
        from_cli(Moved, ["source=a", "b", "c"], "", ("source", "target"))


# Training

CONFIG_DIR = str(ROOT / "config")


def run_config(*args: str) -> PretrainConfig:
    return from_hydra(compose_run(CONFIG_DIR, args))


@pytest.mark.parametrize(
    "text",
    [
        "ünï/run",
        "a b",
        "x=y",
        "~/x",
        "a,b",
        "a(b",
        "it's",
        '"a',
        "a#b",
        "a # b",
        "{a}",
        "a:b",
        "a\\b\\",
        "$HOME",
        "-x",
        "12",
    ],
)
def test_a_text_may_hold_anything(text):
    keys = ("checkpoint_path", "data_path", "run_name", "resume")
    config = run_config(*(f"{key}={text}" for key in keys))
    assert [getattr(config, key) for key in keys] == len(keys) * [text]


@pytest.mark.parametrize(
    ("args", "key", "expected"),
    [
        (["checkpoint_path='a b'"], "checkpoint_path", "a b"),
        (["run_name=null"], "run_name", None),
        (["run_name=${data_path}-x"], "run_name", "data/arc-aug-1000-x"),
        (["freeze=weights"], "freeze", "weights"),
        (["freeze=null"], "freeze", None),
        (["eval_interval=null"], "eval_interval", None),
        (["early_stop={patience: 3}"], "early_stop.patience", 3),
        (["early_stop.patience=3"], "early_stop.patience", 3),
        (["eval_save_outputs=[inputs,labels]"], "eval_save_outputs", ["inputs", "labels"]),
        (["eval_save_outputs=labels"], "eval_save_outputs", ["labels"]),
        (["eval_save_outputs=[]"], "eval_save_outputs", []),
        (["checkpoint_every_eval=True"], "checkpoint_every_eval", True),
        (["resume=TRUE", "checkpoint_path=x"], "resume", True),
        (["compile=off"], "compile", "off"),
        (["global_batch_size=1e3"], "global_batch_size", 1000),
        (["++lr=1", "+lr=2"], "lr", 2),
        (["arch.hidden_size=64"], "arch.puzzle_emb_ndim", 64),  # as the file refers to it
        (["arch=hrm_v1", "experiment=maze_hard_1k"], "data_path", "data/maze-30x30-hard-1k"),
        (["+experiment=[arc_2,maze_hard_1k]"], "lr", 1e-4),
        (["experiment=null"], "data_path", "data/arc-aug-1000"),
    ],
)
def test_what_a_run_is_given(args, key, expected):
    assert reduce(getattr, key.split("."), run_config(*args)) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["foo"], "'foo' is not of the form key=value"),
        (["~lr"], "'~lr' is not of the form key=value"),
        (["-m", "lr=1,2"], "-m: pretrain.py does one run"),
        (["--multirun"], "--multirun: pretrain.py does one run"),
        (["--foo=1"], "unknown option --foo"),
        (["--lr", "1"], "unknown option --lr; a key is given as lr=<value>"),
        (["hydra.run.dir=x"], "checkpoint_path is the run's folder"),
        (["+hydra.sweep.dir=x"], "checkpoint_path is the run's folder"),
        (["--config-name", "mine"], "there is no config/mine.yaml"),
        (["--config-name"], "--config-name needs a value"),
        (["--config-dir", "nowhere"], "there is no such folder"),
        (
            ["+experiment=sudoko_extreme"],
            "there is no config/experiment/sudoko_extreme.yaml; did you mean sudoku_extreme",
        ),
        (["experiment=../arch/hrm_v1"], "there is no config/experiment/../arch/hrm_v1.yaml"),
        (["experiment="], "choose one of arc_1"),
        (["arch=" + "a" * 5000], "there is no config/arch/aaa"),
        (["data_path=\udcff"], "data_path: Input should be UTF-8 text"),
        (["arch={a:1}"], "there is no config/arch/{a:1}.yaml"),
        (["lr=1,2"], "lr=1,2 gives several values"),
        (["lr=range(1,3)"], "gives several values"),
        (["lr=${nope}"], "lr: Interpolation key 'nope' not found"),
        (["lr=${oc.env:NOT_THERE_AT_ALL}"], "lr: KeyError raised while resolving interpolation"),
        (["lr=${lr}"], "lr: Recursive interpolation"),
        (["run_name=a${b"], "cannot set run_name=a${b"),
        (["lr.x=1"], "lr: "),
        (["early_stop=3"], "early_stop: "),
        (["arch.loss=5"], "arch.loss: "),
        (["epochs=10^22"], "epochs: Input should be a valid integer"),
        (["epochs=" + 5000 * "9"], "epochs: Unable to parse input string as an integer"),
        (["lr=" + 1000 * "["], "lr: "),
        (["data_path="], "data_path: "),
        (["checkpoint_path="], "checkpoint_path: "),
        (["resume="], "resume is empty"),
        (["data_path=a\0b"], "data_path: Input should be UTF-8 text without a NUL"),
        (["arch.name=null"], "arch: name=None: it must be <module>@<class> below models/"),
        (["arch.name=nowhere@X"], "models/nowhere.py does not exist"),
        (["arch.q_target_interval=4"], "arch.q_target_interval no longer exists: leave it out"),
    ],
)
def test_what_a_run_is_not_given(args, message):
    with pytest.raises(UserError) as refused:
        run_config(*args)
    assert message in str(refused.value)
    assert "unknown config key" not in str(refused.value)  # one clause for one mistake


def test_your_own_configs_come_from_folders_of_any_name(tmp_path):
    folder = tmp_path / "ünï, it's (mine)"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nlr: 0.125\n")
    assert run_config("--config-dir", str(folder), "experiment=mine").lr == 0.125
    assert run_config(f"--config-dir={folder}", "experiment=mine", "lr=1").lr == 1
    shown = pretrain_help("about", CONFIG_DIR, ["-h", "--config-dir", str(folder), "experiment=mine", "seed=5"])
    assert "mine" in shown and "lr=0.125" in shown and "seed=5" in shown


@pytest.mark.parametrize("args", [["arch=trm"], ["arch.q_target=off"]])
def test_help_shows_a_word_that_yaml_takes_for_a_boolean(args):
    assert re.search(r"arch.q_target=off +\w", pretrain_help("about", CONFIG_DIR, args))


def test_the_keys_are_those_of_the_architecture_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/titled.py").write_text(
        "from models.hrm.hrm_act_v1 import *\n"
        "class Config(HRMConfig):\n    title: str\n"
        "class Titled(HierarchicalReasoningModel_ACTV1):\n    Config = Config\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_config("arch.title=[a]", "arch.name=titled@Titled").arch.title == "[a]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not YAML"),
        (b"a: \xff", "is not UTF-8"),
        ("a: 1".encode("utf-16"), "is UTF-16 text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"a: &a [*a]", "stands for more than"),
        (
            b"a0: &a0 [1,1]\n" + b"".join(b"a%d: &a%d [*a%d,*a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 64)),
            "stands for",
        ),
        (b"[\n" * 1500, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(tmp_path, content, message):
    """Quickly, too: aliases may stand for more than a memory holds."""
    path = tmp_path / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        run_config("--config-dir", str(tmp_path), "experiment=mine")
    with pytest.raises(UserError, match=f"is not the config of a run: .*{message}"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a mapping"),
        ("- 1", "not a mapping"),
        ("1: 2", "Keys should be strings"),
        ("arch: {1: 2}", "arch: name=None"),
        ("arch: {name: hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1, 1: 2}", "Keys should be strings"),
        ("arch: [1]", "arch: "),
        ('arch: {name: "\\uD800"}', "arch: name="),
        ('"\\uD800": 1', ""),
        ('arch: {name: hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1, loss: {"\\uD800": 1}}', ""),
        ("data_path: 2024-01-01", "data_path: "),
        ("data_path: 0x" + 5000 * "f", "data_path: Input should be a smaller number"),
        (None, "is a folder"),
    ],
)
def test_a_yaml_that_is_no_config_is_one_line(tmp_path, content, message):
    path = tmp_path / "all_config.yaml"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=f"is not the config of a run: .*{message}"):
        load_config(str(path))


def published(**changes) -> dict:
    return yaml.safe_load((ROOT / "tests/reference/published_all_config.yaml").read_text()) | changes


def test_nothing_in_a_stored_config_is_resolved(tmp_path, monkeypatch):
    """It may be somebody else's: what it names must not be looked up, printed or pushed."""
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    path = tmp_path / "all_config.yaml"
    path.write_text(yaml.safe_dump(published(data_path="${oc.env:SECRET_TOKEN}", run_name="${project_name}")))
    config = load_config(str(path))
    assert (config.data_path, config.run_name) == ("${oc.env:SECRET_TOKEN}", "${project_name}")
    path.write_text(yaml.safe_dump(published(lr="${oc.env:SECRET_TOKEN}")))
    with pytest.raises(UserError) as refused:
        load_config(str(path))
    assert "hf_secret" not in str(refused.value)


# Numbers: the smallest that is accepted, the largest, and what is beyond

HUGE = 10**400
BOUNDS = {
    "global_batch_size": (1, 2**31 - 1), "epochs": (1, 2**31 - 1), "eval_interval": (1, None), "lr": (0, 1e100),
    "lr_min_ratio": (0, 1), "lr_warmup_steps": (0, 2**31 - 1), "weight_decay": (0, 1e6), "beta1": (0, 0.9999),
    "beta2": (0, 0.9999), "puzzle_emb_lr": (0, 1e100), "puzzle_emb_weight_decay": (0, 1e6), "ema_decay": (0, 0.9999),
    "early_stop.patience": (1, 2**31 - 1), "early_stop.train_exact_accuracy": (1e-9, 1), "seed": (0, 2**62),
    "log_interval": (1, 2**31 - 1), "eval_batch_size": (1, 2**31 - 1), "eval_max_examples": (1, 2**31 - 1),
    "checkpoint_interval": (1, 2**31 - 1), "checkpoint_minutes": (1e-9, 1e9), "keep_last": (1, 2**31 - 1),
    "max_minutes": (1e-9, 1e9), "arch.halt_max_steps": (1, 65_535), "arch.halt_exploration_prob": (0, 1),
    "arch.halt_extra_steps": (0, 65_535), "arch.halt_confidence": (1e-9, 0.999),
    "arch.hidden_size": (16, 10**9 // 16 * 16), "arch.num_heads": (1, 256), "arch.expansion": (0.01, 1e4),
    "arch.puzzle_emb_ndim": (0, 10**9), "arch.rms_norm_eps": (1e-30, 1), "arch.rope_theta": (1, 1e30),
    "arch.H_cycles": (1, 1000), "arch.L_cycles": (1, 1000), "arch.H_layers": (1, 1000), "arch.L_layers": (1, 1000),
}  # fmt: skip


def values_with(key: str, value: float) -> dict:
    values = published(epochs=2, eval_interval=None, early_stop={})
    place = values
    *sections, last = key.split(".")
    for section in sections:
        place = place[section]
    place[last] = value
    return values


@pytest.mark.parametrize("key", BOUNDS)
def test_every_number_has_bounds(key):
    for value in (value for value in BOUNDS[key] if value is not None):
        PretrainConfig.model_validate(values_with(key, value))
    for value in (-1, -HUGE, HUGE, -1e-9, 10**101, 1e300, True, "x"):
        with pytest.raises(ValueError, match=key.split(".")[0]):
            PretrainConfig.model_validate(values_with(key, value))


def test_no_number_is_forgotten():
    numbers = [
        name
        for name, field in keys_of(PretrainConfig, published()).items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    ]
    assert set(numbers) == set(BOUNDS)


@pytest.mark.parametrize("expansion", [1e-9, 1e-300])
def test_a_block_without_width_is_refused(expansion):
    with pytest.raises(UserError, match="leaves SwiGLU no width"):
        run_config(f"arch.expansion={expansion}")
