"""An architecture of your own, from training to pictures: python -m pytest tests/test_new_architecture.py

All that it needs is a folder on PYTHONPATH with `models/plain.py` and `config/arch/plain.yaml`.
"""

import json
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models.act import ACTConfig, ACTModel, DataShape, InnerNetwork
from tests.in_memory import PUZZLES, SEQ_LEN, VOCAB, random_batches
from tests.latin_squares import EXAMPLES
from tests.launch import ROOT, error_line
from tests.runs import PIPELINE, assert_lines_close, load, read_metrics
from tests.warm import run

WITH_PLAIN = os.pathsep.join(map(str, (ROOT, EXAMPLES)))
STEPS = 40  # of 8 sequences: 8 visits of the 40 groups
SETTINGS = {
    "--config-dir": EXAMPLES / "config", "arch": "plain", "data_path": PIPELINE / "dataset", "global_batch_size": 8,
    "epochs": 8, "eval_interval": 4, "lr": 3e-3, "lr_warmup_steps": 5, "weight_decay": 0.1, "device": "cpu", "seed": 3,
    "checkpoint_every_eval": "true", "ema_decay": 0.9, "arch.halt_exploration_prob": 0.5, "checkpoint_interval": 7,
    "resume": "true",
}  # fmt: skip


def command(*arguments: object, **options) -> str:
    """-> what it prints."""
    return run(*arguments, PYTHONPATH=WITH_PLAIN, **options).stdout


def train(folder: Path, ranks: int | None = None, environment: dict | None = None, **changes) -> list[dict]:
    settings = SETTINGS | {"checkpoint_path": folder} | changes
    command("pretrain.py", *(f"{key}={value}" for key, value in settings.items()), ranks=ranks, **environment or {})
    return read_metrics(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    lines = train(folder)
    assert [line["step"] for line in lines if "eval/exact_accuracy" in line] == [20, 40]
    assert lines[STEPS - 1]["train/lm_loss"] < 0.9 * lines[0]["train/lm_loss"]
    assert len({line["train/steps"] for line in lines if line.get("train/count")}) > 2  # rows halt at their own steps
    return folder


def test_the_run_folder_holds_its_source(whole):
    assert {path.name for path in whole.glob("*.py")} == {"plain.py", "act.py", "losses.py"}
    assert (whole / "plain.py").read_text() == (EXAMPLES / "models/plain.py").read_text()


def test_it_goes_on_byte_for_byte_after_stops(whole, tmp_path):
    """Also across the step at which its depth changes."""
    for _ in range(3):
        train(tmp_path / "run", max_minutes=1e-5)
    train(tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("step_40", "step_40_ema"):
        mine, theirs = load(tmp_path / "run" / name), load(whole / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.apart
def test_two_ranks_are_one_process(tmp_path):
    exact = {"arch.halt_exploration_prob": 0, "epochs": 4}  # ranks draw from generators of their own
    one, two = train(tmp_path / "one", **exact), train(tmp_path / "two", ranks=2, **exact)
    assert_lines_close(two, one, rtol=1e-3)


@pytest.mark.apart
def test_it_is_compiled(whole, tmp_path):
    environment = {"DISABLE_COMPILE": "0", "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    lines = train(tmp_path / "run", environment=environment, compile="on", epochs=4, eval_interval=4)
    # Until the warm-up ends no step knows how long the run is.
    assert_lines_close(lines[:5], read_metrics(whole)[:5], rtol=1e-4)


def test_it_is_evaluated_under_both_rules(whole):
    lines = {line["step"]: line for line in read_metrics(whole) if "eval/accuracy" in line}
    found = {}
    for halt in ("max", "q"):
        printed = command("evaluate.py", f"checkpoint={whole / 'step_40_ema'}", f"halt={halt}", "device=cpu")
        found[halt] = {key: float(value) for key, value in re.findall(r"(eval/\w+) +(\S+)", printed)}
    assert found["max"]["eval/accuracy"] == pytest.approx(lines[40]["eval/accuracy"], abs=1e-4)
    assert found["max"]["eval/steps"] == 4
    assert 1 <= found["q"]["eval/steps"] <= 4


def test_it_solves_a_puzzle(whole):
    puzzle = "puzzle=1..4.4...1..4..1"
    answer = json.loads(command("solve.py", f"checkpoint={whole / 'step_40'}", puzzle, "--json", "device=cpu"))
    assert (answer["kind"], answer["size"], len(answer["steps"]), len(answer["answer"])) == ("sudoku", 4, 4, 16)


def test_it_is_searched(whole, tmp_path):
    words = ["-m", "evaluators.search", f"checkpoint={whole / 'step_40'}", "breadth=2", "start=noise", "device=cpu"]
    report = json.loads(command(*words, "views=2", f"output_dir={tmp_path / 'search'}", "json=true"))
    assert (report["puzzles"], report["trajectories"], report["depth"]) == (21, 4, [4])
    assert report["oracle_right"] >= max(report["right"].values())


@pytest.mark.parametrize("figure", ["steps", "scaling"])
def test_figures_are_drawn(whole, tmp_path, figure):
    command("-m", "evaluators.figures", figure, f"checkpoint={whole / 'step_40'}", f"out={tmp_path}", "examples=4")
    report = json.loads((tmp_path / f"step_40_{figure}.json").read_text())
    assert report["examples"] == 4
    assert (tmp_path / f"step_40_{figure}.png").stat().st_size > 5000


def test_a_figure_of_states_says_which_states_there_are(whole, tmp_path):
    """The participation ratio is of every state of cells, by the name that it has."""
    command("-m", "evaluators.figures", "participation", f"checkpoint={whole / 'step_40'}", f"out={tmp_path}")
    report = json.loads((tmp_path / "step_40_participation.json").read_text())
    assert report["trained"].keys() == report["untrained"].keys() == {"board"}


def test_help_lists_its_keys():
    for given in (["--config-dir", EXAMPLES / "config"], [f"--config-dir={EXAMPLES / 'config'}"]):
        printed = command("pretrain.py", *given, "arch=plain", "--help")
        assert {"hrm_v1", "plain"} <= {*re.search(r"arch +(.+)\n", printed)[1].split(", ")}
        assert re.search(r"arch.width=32 +of the state\n", printed)


NO_CONFIG = """
class Model(ACTModel):
    Inner = Network
"""
NO_INNER = """
class Model(ACTModel):
    Config = Config
"""
NO_GRADIENT = """
class Own(Network):
    def __init__(self, config, data):
        super().__init__(config, data)
        self.spare = nn.Linear(3, 3)


class Model(ACTModel):
    Config, Inner = Config, Own
"""
FEWER_LOGITS = """
class Own(Network):
    def forward(self, state, data):
        state, logits, q_values = super().forward(state, data)
        return state, logits[:, :-1], q_values


class Model(ACTModel):
    Config, Inner = Config, Own
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (NO_CONFIG, "its Config is not derived from ACTConfig"),
        (NO_INNER, "its Inner is not derived from InnerNetwork"),
        (NO_GRADIENT, "the loss does not depend on model.inner.spare.weight, model.inner.spare.bias"),
        (FEWER_LOGITS, "Own gives logits of shape (8, 15, 6), which must be (8, 16, 6)"),
    ],
)
def test_what_an_architecture_lacks_is_said(tmp_path, code, message):
    (tmp_path / "models").mkdir()
    imports = ("from torch import nn", "from models.act import ACTModel", "from models.plain import Config, Network")
    (tmp_path / "models/wrong.py").write_text("\n".join(imports) + code)
    settings = SETTINGS | {"checkpoint_path": tmp_path / "run", "arch.name": "wrong@Model"}
    arguments = [f"{key}={value}" for key, value in settings.items()]
    done = run("pretrain.py", *arguments, check=False, PYTHONPATH=os.pathsep.join([WITH_PLAIN, str(tmp_path)]))
    assert done.returncode != 0
    assert message in done.stderr


def test_the_network_in_the_docs_is_whole(monkeypatch):
    """Its levels all learn, in every segment, and it runs in bfloat16."""
    page = (ROOT / "docs/extending.md").read_text()
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class ThreeLevels" in text)
    module = ModuleType("three_levels")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclass and pydantic look for names
    exec(block, module.__dict__)
    values = dict(hidden_size=16, num_heads=2, expansion=2, pos_encodings="rope", puzzle_emb_ndim=16, cycles=2)
    values |= dict(halt_max_steps=4, halt_exploration_prob=0.1, batch_size=8, forward_dtype="bfloat16")
    model = module.ThreeLevels(values | dict(seq_len=SEQ_LEN, vocab_size=VOCAB, num_puzzle_identifiers=PUZZLES))
    carry = model.initial_carry(batch := next(random_batches(8)))
    for _ in range(2):
        model.zero_grad()
        carry, outputs = model(carry, batch)
        (outputs["logits"].sum() + outputs["q_halt_logits"].sum()).backward()
        assert all(parameter.grad.any() for parameter in model.parameters())


def test_its_operations_are_counted():
    """Though it has no forward_dtype."""
    printed = command("-m", "benchmarks.flops", "--config-dir", EXAMPLES / "config", "arch=plain")
    rows = [line.split()[1] for line in printed.splitlines() if " M | " in line]
    assert rows == ["sudoku", "sudoku", "maze", "arc"]


@dataclass
class Vector:
    v: torch.Tensor


@dataclass
class Other:
    w: torch.Tensor


class Least(InnerNetwork):
    """`gives` makes what a step gives from the state's tensor (2, 3), the logits (2, 4, 5) and Q(halt) (2,)."""

    gives = None

    def __init__(self, config, data):
        super().__init__(config, data)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def initial_state(self, batch_size):
        return Vector(torch.zeros(batch_size, 3))

    def forward(self, state, data):
        return type(self).gives(state.v * self.weight, torch.zeros(2, 4, 5) * self.weight, self.weight.expand(2))


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda v, y, q: (Vector(v.detach()), y, (q, None)), None),
        (
            lambda v, y, q: (Vector(v.detach()), y, q, None),
            r"Own.forward gives \(Vector, Tensor, Tensor, NoneType\); it mu",
        ),
        (
            lambda v, y, q: (Vector(v.detach()), y, q),
            r"gives \(Vector, Tensor, Tensor\); it must be \(state, logits, \(q_ha",
        ),
        (
            lambda v, y, q: (Vector(v.detach()), y, (q,)),
            r"gives \(Vector, Tensor, \(Tensor\)\); it must be \(state, logits, ",
        ),
        (lambda v, y, q: y, r"Own.forward gives a Tensor; it must be \(state, logits, \(q_halt, q_continue\)\)"),
        (
            lambda v, y, q: (Vector(v.detach()), y, (q.double(), None)),
            r"gives Q\(halt\) in torch.float64, which must be fl",
        ),
        (
            lambda v, y, q: (Vector(v.detach()), y, (q[:, None], None)),
            r"gives Q\(halt\) of shape \(2, 1\), which must be",
        ),
        (lambda v, y, q: (Vector(v), y, (q, None)), r"a state whose v carries gradient; give v.detach\(\)"),
        (
            lambda v, y, q: (Vector(v.detach().half()), y, (q, None)),
            r"v is torch.float16 \(2, 3\), but initial_state gives torch.float32 \(2, 3\)",
        ),
        (
            lambda v, y, q: (Vector(v.detach()[:, :2]), y, (q, None)),
            r"v is torch.float32 \(2, 2\), but initial_state gives",
        ),
        (lambda v, y, q: (Other(v.detach()), y, (q, None)), "gives a state of w, but initial_state gives v"),
    ],
)
def test_what_a_step_gives_is_compared_with_the_contract(gives, message):
    """A state that changes its type would only show in a resumed run that differs."""
    own = type("Own", (Least,), {"gives": staticmethod(gives)})
    model = type("Model", (ACTModel,), {"Config": ACTConfig, "Inner": own})
    shape = dict(batch_size=2, seq_len=4, vocab_size=5, num_puzzle_identifiers=1)
    built = model(shape | dict(halt_max_steps=2, halt_exploration_prob=0, q_target="off"))
    batch = {"inputs": torch.ones(2, 4, dtype=torch.int32), "puzzle_identifiers": torch.zeros(2, dtype=torch.int32)}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        built(built.initial_carry(batch), batch)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            lambda rows: Vector(torch.zeros(1)),
            r"initial_state\(2\) gives a state whose v has the shape \(1,\); ",
        ),
        (lambda rows: Vector(torch.zeros(())), r"whose v has the shape \(\); its first axis must be the batch"),
        (lambda rows: Vector(torch.zeros(3, rows)), r"whose v has the shape \(3, 2\)"),
    ],
)
def test_a_state_has_the_batch_first(start, message):
    own = type("Own", (Least,), {"initial_state": lambda self, rows: start(rows)})
    config = ACTConfig(halt_max_steps=2, halt_exploration_prob=0, q_target="off")
    inner = own(config, DataShape(batch_size=2, seq_len=4, vocab_size=5, num_puzzle_identifiers=1))
    with pytest.raises(ValueError, match=f"Own.*{message}"):
        inner.empty_carry(2)


def test_a_target_of_a_q_that_is_not_there_is_refused(tmp_path):
    settings = SETTINGS | {"checkpoint_path": tmp_path / "run", "arch.q_target": "every_step"}
    done = run("pretrain.py", *(f"{k}={v}" for k, v in settings.items()), check=False, PYTHONPATH=WITH_PLAIN)
    assert "Network has no Q(continue) that could have a target; set arch.q_target=off" in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arch.name=plain@Nothing", "models/plain.py has no architecture Nothing"),
        ("arch.name=plain@InnerNetwork", "models/plain.py has no architecture InnerNetwork"),
        ("arch.name=nowhere@Model", "models/nowhere.py does not exist"),
        ("arch.name=../plain@Model", "'../plain' is not the name of a module below models/"),
        ("arch.widht=3", "unknown config key 'arch.widht'; did you mean 'arch.width'?"),
        ("arch.hidden_size=3", "unknown config key 'arch.hidden_size'"),
        ("freeze=weights", "plain@PlainTransformer has none here"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, override, message):
    settings = SETTINGS | {"checkpoint_path": tmp_path / "run", "ema_decay": "null"}
    arguments = [*(f"{key}={value}" for key, value in settings.items()), override]
    assert message in error_line("pretrain.py", *arguments, run=run, PYTHONPATH=WITH_PLAIN)
    assert not (tmp_path / "run").exists()
