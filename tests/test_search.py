"""Searching and choosing without labels: python -m pytest tests/test_search.py"""

import inspect
import json
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from dataset.format import SplitWriter
from errors import UserError
from evaluate import EvalConfig, evaluate_checkpoint
from evaluators import ensemble, figures, search, search_rules, trajectories
from evaluators.search import SearchConfig, run_search
from evaluators.search_folder import Rows, row_type
from evaluators.search_rules import CHOOSE, RULES, Candidates, choose
from evaluators.trajectories import Plan, Segment, Trajectories
from puzzles.grid import Grid
from puzzles.kind import find_kind
from tests import warm
from tests.flattering import PUZZLES, RIGHT, flattering_run, own_steps, split_inputs
from tests.in_memory import FAMILY, build_head, composed
from tests.launch import run as launch
from tests.runs import PIPELINE, TRAJECTORY, here, load
from tests.test_own_puzzles import kind_at
from training.checkpoints import load_model, save_weights
from training.config import arch_config
from training.distributed import Ranks
from training.flops import flops_per_step
from training.predictions import read_predictions
from training.reasoning import reasoning_steps

ONE, CPU = Ranks(0, 1, 0), torch.device("cpu")
NAN = float("nan")
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def checkpoint(tmp_path, one_thread):
    return flattering_run(tmp_path)


@pytest.fixture
def halting(checkpoint):
    """The same with a Q head for which the puzzles stop after 1 to 4 steps."""
    weights = load(checkpoint)
    weights["model.inner.q_head.weight"] = torch.randn(2, 32, generator=torch.Generator().manual_seed(75))
    weights["model.inner.q_head.bias"] = torch.tensor([-15.4, 0.0])
    path = checkpoint.with_name("step_61")
    torch.save(weights, path)
    return path


def searched(checkpoint, **changes) -> dict:
    """The report of a search in this process."""
    paths = [str(path) for path in (checkpoint if isinstance(checkpoint, list) else [checkpoint])]
    return run_search(SearchConfig(checkpoint=paths, **changes), ONE, CPU)


def rows_of(folder, ranks: int = 1) -> np.ndarray:
    dtype = row_type(tuple(RULES), 1)
    rows = np.concatenate([np.fromfile(folder / f"rows.{rank}.bin", dtype) for rank in range(ranks)])
    return np.sort(rows, order="example")


# Labels


def test_choosing_is_not_given_the_labels():
    functions = [search.think, search.choice_of, search.choices_of, choose, search_rules.settled, search_rules.vote]
    functions += [search_rules.medoid, *(rule.choose for rule in RULES.values()), Candidates.add, Candidates.empty]
    functions += [function for _, function in inspect.getmembers(trajectories, inspect.isfunction)]
    functions += [function for _, function in inspect.getmembers(Trajectories, inspect.isfunction)]
    for function in functions:
        assert not {"labels", "label", "batch", "dataset"} & set(inspect.signature(function).parameters)
    assert "label" not in inspect.getsource(trajectories.Trajectories)


def test_other_labels_change_no_choice(halting, tmp_path):
    """The whole command on the dataset and on one whose labels are scrambled: only what is counted right differs."""
    data, scrambled = tmp_path / "data", tmp_path / "scrambled"
    shutil.copytree(data, scrambled)
    np.save(scrambled / "test/all__labels.npy", 1 + np.load(scrambled / "test/all__labels.npy") % 5)
    found = []
    for path in (data, scrambled):
        report = searched(halting, views=2, breadth=2, start="noise", patience=1, data_path=str(path))
        found.append((report, rows_of(tmp_path / "run/step_61_search")))
    (report, rows), (other, theirs) = found
    for key in ("example", "segments", "valid_answers", "no_answer"):
        np.testing.assert_array_equal(rows[key], theirs[key])
    for rule in RULES:
        for key in ("trajectory", "score", "valid"):
            np.testing.assert_array_equal(rows["rules"][rule][key], theirs["rules"][rule][key])
    assert report["right"]["single_pass"] > 0
    assert {*other["right"].values(), other["oracle_right"]} == {0}
    assert report["mean_steps"] == other["mean_steps"]


# Exactness


def predicted(checkpoint, **changes) -> tuple[np.ndarray, np.ndarray, float]:
    """-> the answers and Q(halt) of evaluate.py, and its mean number of steps."""
    metrics = evaluate_checkpoint(EvalConfig(checkpoint=str(checkpoint), **changes), ONE, CPU)
    parts = list(read_predictions(checkpoint, checkpoint.parent.parent / "data"))
    steps = metrics["eval/steps"]
    return (
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.q_halt_logits for part in parts]),
        steps,
    )


@pytest.fixture
def answers(monkeypatch):
    """rule -> its answers, of the searches that are run."""
    seen: dict[str, list] = {rule: [] for rule in RULES}
    choices_of = search.choices_of

    def recording(*args):
        choices, valid = choices_of(*args)
        for rule, choice in choices.items():
            seen[rule].append(choice.answers)
        return choices, valid

    monkeypatch.setattr(search, "choices_of", recording)
    return lambda rule: np.concatenate(seen[rule])


def test_one_trajectory_is_evaluate(halting, answers):
    """Under both rules of halting: answer for answer, Q for Q, step for step."""
    report = searched(halting, patience=1, choose="first_halt")
    theirs, q_halt, steps = predicted(halting, halt="q")
    np.testing.assert_array_equal(answers("first_halt"), theirs)
    rows = rows_of(halting.with_name("step_61_search"))
    np.testing.assert_allclose(rows["rules"]["first_halt"]["score"], q_halt, rtol=1e-5)
    assert report["mean_steps"] == pytest.approx(steps)
    assert 1 < steps < 4

    whole = searched(halting, output_dir=str(halting.parent / "whole"))
    theirs, q_halt, _ = predicted(halting)
    for rule in set(RULES) - {"first_halt"}:
        np.testing.assert_array_equal(answers(rule)[PUZZLES:], theirs)
    np.testing.assert_allclose(rows_of(halting.parent / "whole")["rules"]["q"]["score"], q_halt, rtol=1e-5)
    assert whole["mean_steps"] == 4
    assert whole["right"]["first_halt"] == report["right"]["first_halt"]
    head = build_reference_head()
    assert whole["flops_per_puzzle"] == pytest.approx(4 * flops_per_step(head, 1, training=False))


def build_reference_head():
    """The reference run's model, untrained."""
    return arch_config(TRAJECTORY["config"]["arch"]).build(
        batch_size=3, seq_len=16, vocab_size=6, num_puzzle_identifiers=1
    )


def test_it_answers_as_the_loop_of_training(checkpoint, answers):
    """Residuals too, and more segments than were trained."""
    searched(checkpoint, depth=6, global_batch_size=30)
    run = json.loads(json.dumps(TRAJECTORY["config"]["arch"]))
    assert run["halt_max_steps"] == 4
    steps = own_steps(checkpoint, split_inputs(checkpoint.parent.parent / "data"))
    rows = rows_of(checkpoint.with_name("step_60_search"))
    assert rows["segments"].tolist() == [6] * PUZZLES
    searched(checkpoint)
    rows = rows_of(checkpoint.with_name("step_60_search"))
    np.testing.assert_array_equal(answers("majority")[PUZZLES:], steps[-1]["answers"])
    states = [np.concatenate([step["z_H"], step["z_L"]], axis=1).reshape(PUZZLES, -1) for step in steps]
    moved = [np.linalg.norm(b - a, axis=1) / np.linalg.norm(b, axis=1) for a, b in pairwise(states)]
    np.testing.assert_allclose(rows["rules"]["residual"]["score"], -np.mean(moved[-3:], axis=0), rtol=1e-4)


def test_the_trajectories_are_those_of_a_plain_loop(checkpoint, answers):
    """Views and a second checkpoint, against every copy run on its own."""
    other = checkpoint.with_name("step_0")
    shutil.copy(PIPELINE / "init_checkpoint.pt", other)
    report = searched([str(checkpoint), str(other)], views=3, seed=5)
    inputs = split_inputs(checkpoint.parent.parent / "data")
    views = find_kind("sudoku")(4, 4).symmetries(3, seed=5)
    everyone = []
    for path in (checkpoint, other):
        head = build_reference_head()
        head.load_state_dict(load(path))
        for view in views:
            rows = torch.from_numpy(view.apply(inputs).astype(np.int32))
            *_, last = reasoning_steps(head.model, rows, torch.zeros(len(rows), dtype=torch.int32))
            everyone.append((view.undo(last.answer.numpy()), last.q_halt.double().numpy()))
    theirs, q_halt = (np.stack(column, axis=1) for column in zip(*everyone, strict=True))  # (21, 6, …)
    by_q = q_halt.argmax(1)
    np.testing.assert_array_equal(answers("q"), theirs[np.arange(PUZZLES), by_q])
    labels = np.load(checkpoint.parent.parent / "data/test/all__labels.npy")
    assert report["oracle_right_at_last"] == (theirs == labels[:, None]).all(-1).any(1).sum()
    assert (report["trajectories"], report["views"], report["depth"]) == (6, 3, [4, 4])
    assert max(report["right"].values()) <= report["oracle_right"]
    assert report["right"]["single_pass"] == RIGHT
    for rule, gap in report["selection_gap"].items():
        assert gap == pytest.approx((report["oracle_right"] - report["right"][rule]) / PUZZLES)


# Cells that do not count, and puzzles without an answer

CANVASES = {
    "arc": find_kind("arc")(4, 4),
    "grid": Grid(4, 4, vocabulary=("", "", *"abcd"), fills=(None,) * 6, glyphs=("",) * 6, ends=True),
}


@pytest.fixture(params=CANVASES)
def canvas(request, tmp_path, one_thread):
    """(kind, an untrained model of grids on a canvas): junk outside of its grids, end marks where none belong. Labels
    are its own answers, as far as they count: a third of the cells; the last two of 12 puzzles have none."""
    kind = CANVASES[request.param]
    config = composed(*FAMILY["sudoku_extreme_1k"], experiment="sudoku_extreme_1k")
    torch.manual_seed(2)
    shape = dict(seq_len=16, vocab_size=kind.vocab_size, num_puzzle_identifiers=1)
    head, run = config.arch.build(batch_size=4, **shape), tmp_path / "run"
    run.mkdir()
    torch.save(head.state_dict(), run / "step_1")
    (run / "all_config.yaml").write_text(json.dumps(config.model_dump() | {"data_path": str(tmp_path / "data")}))
    rng = np.random.default_rng(5)
    inputs = rng.integers(2, kind.vocab_size, (12, 16), dtype=np.uint8)
    *_, last = reasoning_steps(head.model, torch.from_numpy(inputs.astype(np.int32)), torch.zeros(12).int())
    answers = last.answer.numpy().astype(np.uint8)
    labels = np.where(rng.random((12, 16)) < 1 / 3, answers, 0)
    labels[6:10] = answers[6:10] % (kind.vocab_size - 1) + 1  # wrong
    labels[10:] = 0
    assert labels[:10].any(1).all()
    build(tmp_path / "data", inputs, kind.vocab_size, labels, kind)
    return run / "step_1"


def test_right_is_what_evaluate_counts_as_right(canvas):
    """Whatever stands in the cells without a label, and with nothing to score where there is none."""
    metrics = evaluate_checkpoint(EvalConfig(checkpoint=str(canvas)), ONE, CPU)
    assert metrics["eval/exact_accuracy"] == pytest.approx(0.6)
    report = searched(canvas)
    assert (report["puzzles"], report["scored"]) == (12, 10)
    assert set(report["right"].values()) == {6} == {report["oracle_right"]}
    assert set(report["selection_gap"].values()) == {0}
    for rule in RULES:
        assert report["abstention"][rule]["accuracy_at_coverage"]["1.0"] == pytest.approx(0.6)
    assert "2 puzzles have no answer and are not scored" in search.table(report)
    assert "       6    60.0%" in search.table(report)


def test_a_split_without_answers_is_searched_and_not_scored(canvas, tmp_path):
    inputs, kind = split_inputs(tmp_path / "data"), kind_at(tmp_path / "data", "test")
    data = build(tmp_path / "asked", inputs, kind.vocab_size, 0 * inputs, kind)
    report = searched(canvas, breadth=2, start="noise", data_path=data)
    assert (report["scored"], set(report["right"].values())) == (0, {0})
    assert set(report["selection_gap"].values()) == {None}
    assert report["abstention"]["q"]["auroc"] is None
    assert "12 puzzles have no answer and are not scored" in search.table(report)


@pytest.mark.parametrize("name", CANVASES)
def test_answers_with_the_same_grid_are_one_vote_and_right_by_their_labels(name):
    """The majority differs in its end marks and in junk: its first is taken, which lacks an end mark of the label."""
    kind = CANVASES[name]
    grid = [[3, 4, 1, 1], [2, 2, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    told = np.array([grid] * 4, np.uint8)
    told[0, 0, 0] = 4  # another grid
    told[1, 2, 0], told[2, 3, 3], told[3, 1, 3] = 0, 5, 3
    q_halt = np.array([3.0, 2, 1, 0])
    numbers = np.tile(q_halt, (1, 1))
    group = type("Told", (), {"begin": lambda *_: None})()
    group.advance = lambda: Segment(told.reshape(1, 4, 16), numbers, numbers > 9, numbers)
    plan = Plan(kind.symmetries(1, 0), breadth=4, start="noise")
    one = search.Search([None], [1], None, kind, plan, "majority", None, 4, [group])
    inputs = np.full((1, 16), 2, np.uint8)
    found, segments = search.think(one, inputs, np.zeros(1, np.int32), np.zeros(1, np.int64))
    labels = np.where(np.array(grid).reshape(1, 16) == 0, -100, np.array(grid).reshape(1, 16))
    labels[0, [3, 11]] = -100
    (row,) = search.record(one, inputs, np.zeros(1), found, segments, labels)
    majority = row["rules"]["majority"]
    assert (majority["trajectory"], majority["score"], majority["right"]) == (1, 0.75, False)
    assert (row["any_right"], row["rules"]["q"]["trajectory"]) == (True, 0)


# Frames, batches and random numbers


@dataclass
class Counter:
    taken: torch.Tensor  # (B,) how many segments


class Scripted(torch.nn.Module):
    """Stands for a model whose answers to each copy are known: input (as bytes) -> its answers and Q by segment."""

    def __init__(self, script: dict[bytes, list[tuple[np.ndarray, float]]]):
        super().__init__()
        self.weight, self.script = torch.nn.Parameter(torch.zeros(1)), script
        self.inner = type("Inner", (), {"draws": False, "initial_state": lambda _, n: self.started(n)})()
        self.most_rows = self.most_states = 0

    def started(self, n):
        self.most_states = max(self.most_states, n)
        return Counter(torch.zeros(n))

    def advance(self, state, data):
        self.most_rows = max(self.most_rows, len(state.taken))
        told = [self.script[row.numpy().astype(np.uint8).tobytes()] for row in data["inputs"]]
        now = [lines[int(number)] for lines, number in zip(told, state.taken, strict=True)]
        logits = torch.nn.functional.one_hot(torch.tensor(np.stack([answer for answer, _ in now])).long(), 6).float()
        q_halt = torch.tensor([q for _, q in now])
        return Counter(state.taken + 1), logits, q_halt, torch.zeros(len(now))

    def wants_to_halt(self, q_halt, q_continue):
        return q_halt > q_continue


def scripted_search(told: np.ndarray, q_halt: np.ndarray, **options):
    """Copies of the first puzzles, 5 rows at a time: told (segments, puzzles, copies, cells) in the puzzles' frames,
    q_halt without the cells. -> (search, inputs)."""
    kind = find_kind("sudoku")(4, 4)
    segments, puzzles, copies = q_halt.shape
    plan = Plan(kind.symmetries(copies, seed=0))
    inputs = split_inputs(PIPELINE / "dataset")[:puzzles]
    script = {
        view.apply(inputs[puzzle]).tobytes(): [
            (view.apply(told[number, puzzle, copy]), float(q_halt[number, puzzle, copy])) for number in range(segments)
        ]
        for puzzle in range(puzzles)
        for copy, view in enumerate(plan.views)
    }
    groups = [Trajectories(Scripted(script), 0, plan, rows=5, **options)]
    return search.Search([None], [segments], None, kind, plan, "majority_valid", None, 5, groups), inputs


@pytest.mark.parametrize(
    ("options", "patience", "rows", "states"),
    [({}, None, 3, 3), ({"one_shape": True}, None, 5, 3), ({}, 9, 5, 12)],
)
def test_answers_come_back_to_the_puzzles_own_frame(options, patience, rows, states):
    """12 rows in parts; without patience there are not even more states than fit a forward pass."""
    rng = np.random.default_rng(0)
    solutions = np.load(PIPELINE / "dataset/test/all__labels.npy")
    told, q_halt = rng.integers(0, 6, (2, 3, 4, 16), dtype=np.uint8), -rng.random((2, 3, 4))
    told[1, 0, 2], told[1, 2, 3] = solutions[0], solutions[2]
    one, inputs = scripted_search(told, q_halt, **options)
    one.patience = patience
    found, segments = search.think(one, inputs, np.zeros(3, np.int32), np.arange(3))
    np.testing.assert_array_equal(found.answers, told[1])
    np.testing.assert_allclose(found.q_halt, q_halt[1], rtol=1e-6)
    assert segments.tolist() == [2, 2, 2]
    assert (one.groups[0]._model.most_rows, one.groups[0]._model.most_states) == (rows, states)
    choices, valid = search.choices_of(one, inputs, found)
    assert np.argwhere(valid).tolist() == [[0, 2], [2, 3]]
    assert choices["majority_valid"].trajectory[[0, 2]].tolist() == [2, 3]
    np.testing.assert_array_equal(choices["q"].trajectory, q_halt[1].argmax(1))


def test_a_settled_puzzle_leaves_the_batch():
    """By patience or by the first halt; the others go on as if it had stayed."""
    by_copy = np.arange(4)[:, None].repeat(16, 1).astype(np.uint8)  # copy k answers k in every cell
    told = np.broadcast_to(by_copy, (8, 3, 4, 16)).copy()
    told[:, 1] = (told[:, 1] + np.arange(8)[:, None, None] // 3) % 6  # changes in segments 4 and 7
    told[:3, 2] = np.array([2, 4, 5], np.uint8)[:, None, None]  # changes in segments 2, 3 and 4
    q_halt = np.full((8, 3, 4), -1.0)
    q_halt[:, :, 2] = -0.5  # the surest copy
    q_halt[2:, 2, 1] = 0.5
    one, inputs = scripted_search(told, q_halt)
    for rule, patience, expected in (
        ("q", 1, [2, 2, 5]),
        ("q", 2, [3, 3, 6]),
        ("q", 3, [4, 8, 7]),
        ("first_halt", 1, [8, 8, 3]),
        ("first_halt", 5, [8, 8, 3]),
        ("majority", None, [8, 8, 8]),
    ):
        one.rule, one.patience = rule, patience
        found, segments = search.think(one, inputs, np.zeros(3, np.int32), np.arange(3))
        assert segments.tolist() == expected, (rule, patience)
        for puzzle, last in enumerate(expected):
            np.testing.assert_array_equal(found.answers[puzzle], told[last - 1, puzzle])
            assert found.segments[puzzle].tolist() == [last] * 4
    assert found.halt_segment.tolist() == [[0] * 4, [0] * 4, [0, 3, 0, 0]]
    labels = np.array([[0], [5], [5]]).repeat(16, axis=1)  # that of the third was only answered where it halted
    rows = search.record(one, inputs, np.arange(3), found, segments, labels)
    assert rows["any_last_right"].tolist() == [True, True, False]
    assert rows["any_right"].tolist() == [True, True, True]
    assert rows["rules"]["first_halt"]["right"].tolist() == [False, False, True]


@pytest.mark.parametrize("model", ["halting", "drawing"])
def test_trajectories_part_by_part_are_those_in_lockstep(halting, tmp_path, model):
    """A puzzle's 6 in forward passes of 4, with a patience that is never used up; a model that draws, too."""
    path = halting if model == "halting" else drawing_run(tmp_path)
    options = dict(views=2, breadth=3, start="noise", global_batch_size=4, max_examples=6)
    parts = searched(path, output_dir=str(tmp_path / "parts"), **options)
    lockstep = searched(path, output_dir=str(tmp_path / "lockstep"), patience=4, **options)
    assert (parts.pop("patience"), lockstep.pop("patience")) == (None, 4)
    assert parts == lockstep
    assert rows_of(tmp_path / "parts").tobytes() == rows_of(tmp_path / "lockstep").tobytes()


def tiny(experiment: str):
    torch.manual_seed(0)
    return build_head(composed(*FAMILY[experiment], experiment=experiment)).model


def test_a_single_start_with_noise_has_none_and_says_so(checkpoint, caplog):
    fixed = searched(checkpoint, depth=1)
    assert not caplog.messages
    assert searched(checkpoint, depth=1, start="noise")["right"] == fixed["right"]
    (message,) = caplog.messages
    assert message.endswith("and breadth=1: nothing is drawn; raise breadth")


@pytest.mark.parametrize("start", ["random", "noise"])
@pytest.mark.parametrize("experiment", ["sudoku_extreme_1k", "urm_sudoku"])
def test_a_start_does_not_depend_on_the_batch(experiment, start, one_thread):
    model = tiny(experiment)
    plan = Plan(find_kind("sudoku")(9, 9).symmetries(2, 0), breadth=3, start=start, sigma=0.5, seed=4)
    inputs = np.random.default_rng(0).integers(1, 11, (4, 81), dtype=np.uint8)

    def run(rows, examples, at_once):
        group = Trajectories(model, 0, plan, at_once)
        group.begin(inputs[rows], np.zeros(len(rows), np.int32), np.array(examples))
        starts = [tensor.clone() for tensor in trajectories.tensors_of(group._state)]
        group.advance()
        return starts, group.advance()

    starts, together = run([0, 1, 2, 3], [5, 6, 7, 8], 24)
    theirs, alone = run([2], [7], 4)
    for mine, other in zip(starts, theirs, strict=True):
        torch.testing.assert_close(mine[12:18], other, rtol=0, atol=0)
        assert len({row.numpy().tobytes() for row in mine}) == (24 if start == "random" else 17)  # 1 + 4 × 2 × 2
    np.testing.assert_allclose(together.residual[2:3], alone.residual, rtol=1e-3)
    np.testing.assert_allclose(together.q_halt[2:3], alone.q_halt, rtol=1e-3)
    assert (together.answers[2:3] == alone.answers).mean() > 0.999
    own = next(trajectories.tensors_of(model.inner.initial_state(1)))
    if start == "noise":
        torch.testing.assert_close(starts[0][0], own[0])
        assert (starts[0][1] - own[0]).std() == pytest.approx(0.5, rel=0.05)
    else:
        assert (starts[0].mean().abs(), starts[0].std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, rel=0.02))


def test_noise_is_independent_of_a_start_that_is_drawn(one_thread):
    model = tiny("eqr_sudoku")
    plan = Plan(find_kind("sudoku")(9, 9).symmetries(1, 0), breadth=4, start="noise", sigma=0.5, seed=4)
    own, noisy = (
        next(trajectories.tensors_of(trajectories.start_states(model, 0, of, np.arange(3), range(4))))
        for of in (replace(plan, start="fixed"), plan)
    )
    own, noise = own.flatten(1), (noisy - own).flatten(1)
    assert noise.std(1).tolist() == pytest.approx([0, 0.5, 0.5, 0.5] * 3, rel=0.05)
    for row in (1, 2, 3, 5, 6, 7, 9, 10, 11):
        for start in range(16):  # vectors of 16 numbers are drawn from the same bits, in another order
            found = np.corrcoef(own[row, start::16].numpy(), noise[row, start::16].numpy())[0, 1]
            assert abs(found) < 4 / np.sqrt(own.shape[1] / 16)


def test_a_model_that_draws_is_seeded(one_thread):
    """EqR: its starts by the row, its noise by the chunk; the generators of others stay as they are."""
    model = tiny("eqr_sudoku")
    plan = Plan(find_kind("sudoku")(9, 9).symmetries(1, 0), seed=4)
    inputs = np.random.default_rng(0).integers(1, 11, (3, 81), dtype=np.uint8)

    def run(examples, seed=4):
        group = Trajectories(model, 0, Plan(plan.views, seed=seed), 2)
        group.begin(inputs, np.zeros(3, np.int32), np.array(examples))
        start = next(trajectories.tensors_of(group._state)).clone()
        return start, group.advance().residual

    torch.manual_seed(1)
    before = torch.get_rng_state()
    (start, residual), again = run([3, 4, 5]), run([3, 4, 5])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(start, again[0])
    np.testing.assert_array_equal(residual, again[1])
    assert not torch.equal(start[0], start[1])
    other = run([3, 5, 4])
    assert torch.equal(start[1], other[0][2])  # example 4
    np.testing.assert_array_equal(residual[0], other[1][0])
    with pytest.MonkeyPatch.context() as patch:  # from the same start
        patch.setattr(trajectories, "start_states", lambda *_: again_from)
        again_from = model.inner.initial_state(3)
        assert (run([3, 4, 5])[1] != run([4, 3, 5])[1]).all()
    assert not torch.equal(start, run([3, 4, 5], seed=5)[0])


# The command


@pytest.mark.drawn
def test_the_command(checkpoint, tmp_path):
    words = [f"checkpoint={checkpoint}", "views=3", "breadth=2", "start=noise", "sigma=0.2", f"output_dir={tmp_path}/o"]
    report = json.loads(here(search.main, *words, "json=true"))
    assert (report["puzzles"], report["trajectories"], report["choose"]) == (PUZZLES, 6, "majority_valid")
    assert report["right"]["single_pass"] == RIGHT
    assert max(report["right"].values()) <= report["oracle_right"]
    assert json.loads((tmp_path / "o/report.json").read_text()) == report
    assert (tmp_path / "o/risk_coverage.png").stat().st_size > 5000
    assert report["flops_per_puzzle"] == pytest.approx(6 * 4 * flops_per_step(build_reference_head(), 1, False))

    lines = here(search.main, *words).splitlines()
    counts = report["right"] | {"oracle": report["oracle_right"]}
    names = {rule: about.name for rule, about in RULES.items()} | {"oracle": "pass@6: any answer right"}
    for rule, name in names.items():
        (line,) = [line for line in lines if line.startswith(f"{name}  ")]
        assert int(line.removeprefix(name).split()[0]) == counts[rule]
        assert ("upper bound: uses the labels" in line) == (rule == "oracle")
        assert ("<- choose=majority_valid" in line) == (rule == "majority_valid")


def test_a_kind_without_rules_or_symmetries(checkpoint, tmp_path):
    """ARC: one view, no count of valid answers, and the majority for both."""
    config = composed(*FAMILY["trm_sudoku"], "arch.L_layers=1", experiment="trm_sudoku")
    data = build(tmp_path / "arc", np.full((3, 900), 2, np.uint8), 12)
    run = tmp_path / "arc_run"
    run.mkdir()
    head = config.arch.build(batch_size=2, seq_len=900, vocab_size=12, num_puzzle_identifiers=1)
    torch.save(head.state_dict(), run / "step_1")
    (run / "all_config.yaml").write_text(json.dumps(config.model_dump() | {"data_path": data}))
    report = searched(run / "step_1", depth=1, breadth=2, start="random", global_batch_size=4)
    assert (report["kind"], report["choose"], report["valid"], report["valid_answers"]) == (
        "arc",
        "majority",
        None,
        None,
    )
    rows = rows_of(run / "step_1_search")
    np.testing.assert_array_equal(rows["rules"]["majority"], rows["rules"]["majority_valid"])
    with pytest.raises(UserError, match=r"python -m evaluators\.arc"):
        searched(run / "step_1", views=2)


def test_without_a_count_of_operations_the_report_says_why(checkpoint, monkeypatch):
    def old(*_, **__):
        raise UserError("counting operations needs PyTorch 2.5 or later")

    monkeypatch.setattr(search, "flops_per_step", old)
    report = searched(checkpoint, depth=1)
    assert report["flops_per_puzzle"] is None
    assert "PyTorch 2.5" in report["flops_note"]
    assert "operations are not counted" in search.table(report)


def test_answers_of_no_numbers_are_never_chosen(checkpoint, monkeypatch, caplog):
    advance = Trajectories.advance

    def broken(self):
        segment = advance(self)
        segment.q_halt[:3, 1] = NAN
        return segment

    monkeypatch.setattr(Trajectories, "advance", broken)
    searched(checkpoint, views=2, global_batch_size=42)
    rows = rows_of(checkpoint.with_name("step_60_search"))
    assert rows["no_answer"][:, 0].tolist() == [1] * 3 + [0] * 18
    for rule in RULES:
        assert rows["rules"][rule]["trajectory"][:3].tolist() == [0, 0, 0]
    assert caplog.messages[-1] == f"3 answers of {checkpoint} are no numbers (NaN or infinite): they have no vote"


def test_overflowing_weights_give_no_answers(checkpoint):
    weights = load(checkpoint)
    weights["model.inner.q_head.bias"] = torch.tensor([3e38, 0.0])
    weights["model.inner.q_head.weight"][:] = 3e38
    path = checkpoint.with_name("step_62")
    torch.save(weights, path)
    report = searched(path, views=2)
    assert report["no_answer"] == [2 * PUZZLES]
    assert set(report["right"].values()) == {report["oracle_right"]} == {0}


# The folder


def test_a_search_goes_on_after_a_kill(halting, tmp_path, monkeypatch):
    """Cut in the middle of a record of the second chunk."""
    options = dict(views=2, breadth=2, start="random", patience=2, global_batch_size=20)  # chunks of 5
    whole = searched(halting, **options)
    folder = halting.with_name("step_61_search")
    bytes_before, done = (folder / "rows.0.bin").read_bytes(), []
    (folder / "report.json").unlink()
    size = row_type(tuple(RULES), 1).itemsize
    (folder / "rows.0.bin").write_bytes(bytes_before[: 8 * size + 11])
    think = search.think
    monkeypatch.setattr(search, "think", lambda *args: done.append(args[3].tolist()) or think(*args))
    assert searched(halting, resume=True, **options) == whole
    assert (folder / "rows.0.bin").read_bytes() == bytes_before
    assert [numbers[0] for numbers in done] == [5, 10, 15, 20]
    done.clear()
    (folder / "rows.0.bin").write_bytes(bytes_before + b"more")  # nothing is left to do
    assert searched(halting, resume=True, **options) == whole
    assert not done
    assert (folder / "rows.0.bin").read_bytes() == bytes_before
    assert searched(halting, **options) == whole  # without it, from the beginning
    assert len(done) == 5


CHANGES = {
    "depth": (dict(depth=3), r"depth was \[4\] and is \[3\]"),
    "seed": (dict(seed=1), "seed was 0 and is 1"),
    "rows": (dict(global_batch_size=4), "rows was 8 and is 4"),
    "choose": (dict(choose="q"), "choose was majority_valid and is q"),
    "subset": (dict(max_examples=16), "puzzles was 21 and is 16"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_search_is_not_gone_on_with(checkpoint, case):
    searched(checkpoint, depth=4)
    changes, message = CHANGES[case]
    rows = checkpoint.with_name("step_60_search") / "rows.0.bin"
    before = rows.read_bytes()
    with pytest.raises(UserError, match=message):
        searched(checkpoint, **{"depth": 4, "resume": True} | changes)
    assert rows.read_bytes() == before


def test_a_folder_with_other_things_is_refused(checkpoint, tmp_path):
    mine, beside = tmp_path / "mine", tmp_path / "beside"
    for folder, name in ((mine, "notes.txt"), (beside, "rows.0.bin")):
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=rf"holds something else than a search \({name}\); name another output_dir"):
            searched(checkpoint, depth=1, output_dir=str(folder))
        assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "mine"}
    with pytest.raises(UserError, match="is there and is no folder"):
        searched(checkpoint, depth=1, output_dir=str(mine / "notes.txt"))
    with pytest.raises(UserError, match="holds something else than a search"):
        searched(checkpoint, depth=1, output_dir=str(checkpoint.parent))
    assert checkpoint.exists()
    report = searched(checkpoint, depth=1, output_dir=str(tmp_path / "new"))
    assert searched(checkpoint, depth=1, output_dir=str(tmp_path / "new")) == report
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "report.json", "risk_coverage.png", "rows.0.bin", "settings.json",
    ]  # fmt: skip


def test_a_run_that_finds_a_better_checkpoint_meanwhile(checkpoint, monkeypatch):
    """All of a search is of the checkpoint with which it began."""
    best = checkpoint.parent / "best.json"
    best.write_text(json.dumps({"checkpoint": checkpoint.name}))

    def load(*arguments, **options):
        shutil.copy(checkpoint, checkpoint.with_name("step_99"))
        best.write_text(json.dumps({"checkpoint": "step_99"}))
        return load_model(*arguments, **options)

    monkeypatch.setattr(search, "load_model", load)
    here(search.main, f"checkpoint={checkpoint.parent}", "depth=1", "device=cpu")
    assert [path.name for path in checkpoint.parent.glob("*_search")] == [f"{checkpoint.name}_search"]


def test_a_full_disk_says_how_to_go_on(tmp_path):
    dtype = row_type(("q",), 1)
    rows = Rows(tmp_path / "rows.0.bin", dtype)
    rows.append(np.zeros(2, dtype))
    rows._file.close()
    rows._file = open("/dev/full", "ab")
    # Closing it tries to write once more what did not fit.
    with pytest.raises(UserError, match="No space left on device; make room and go on with resume=true"), rows:
        rows.append(np.zeros(2, dtype))


@pytest.mark.apart
def test_two_ranks_are_one_process(checkpoint, tmp_path):
    """Even for a model that draws in every segment."""
    words = ["views=2", "breadth=2", "start=random", "patience=1", "json=true", "device=cpu", "global_batch_size=16"]
    words += [f"checkpoint={drawing_run(tmp_path)}"]
    one = warm.run("-m", "evaluators.search", *words, f"output_dir={tmp_path / 'one'}")
    two = warm.run("-m", "evaluators.search", *words, f"output_dir={tmp_path / 'two'}", ranks=2)
    assert json.loads(one.stdout) == json.loads(two.stdout)
    assert rows_of(tmp_path / "one").tobytes() == rows_of(tmp_path / "two", ranks=2).tobytes()
    assert 0 < len(np.fromfile(tmp_path / "two/rows.1.bin", row_type(tuple(RULES), 1))) < PUZZLES


def drawing_run(folder):
    """An untrained EqR on the same data."""
    torch.manual_seed(0)
    config = composed(*FAMILY["eqr_sudoku"], "arch.hidden_size=32", experiment="eqr_sudoku")
    head = config.arch.build(batch_size=2, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    (folder / "eqr").mkdir()
    torch.save(head.state_dict(), folder / "eqr/step_1")
    text = json.dumps(config.model_dump() | {"data_path": str(folder / "data")})
    (folder / "eqr/all_config.yaml").write_text(text)
    return folder / "eqr/step_1"


@pytest.mark.apart
def test_under_torchrun(checkpoint, tmp_path):
    words = [f"checkpoint={checkpoint}", "depth=1", "json=true", "device=cpu"]
    done = launch("-m", "evaluators.search", *words, ranks=2)
    assert json.loads(done.stdout)["right"] == searched(checkpoint, depth=1, output_dir=str(tmp_path / "o"))["right"]


# Mistakes


def build(folder, inputs, vocab_size, labels=None, kind=None):
    folder.mkdir(parents=True)
    writer = SplitWriter(folder, "test", seq_len=inputs.shape[1])
    ones, labels = np.ones(len(inputs), np.int32), inputs if labels is None else labels
    writer.append(inputs, labels, puzzle_identifiers=0 * ones, puzzle_sizes=ones, group_sizes=ones)
    writer.finish(vocab_size=vocab_size, num_puzzle_identifiers=1, kind=kind)
    return str(folder)


def test_mistakes_are_refused(checkpoint, tmp_path, monkeypatch):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            searched(checkpoint, **changes)

    refused("has 3072 different ones", views=9999)
    for absurd in (dict(views=10**9), dict(depth=10**12), dict(breadth=10**9)):
        with pytest.raises(ValueError, match="less than or equal to"):
            SearchConfig(checkpoint=str(checkpoint), **absurd)
    with pytest.raises(ValueError, match="add start=random or noise"):
        SearchConfig(checkpoint=str(checkpoint), breadth=2)
    with pytest.raises(ValueError, match="sigma is that of start=noise"):
        SearchConfig(checkpoint=str(checkpoint), breadth=2, start="random", sigma=0.1)
    nothing = build(tmp_path / "none", np.full((2, 15), 2, np.uint8), 12)
    refused("15 cells with 12 tokens are none of", data_path=nothing)
    with pytest.raises(UserError, match="named twice"):
        searched([str(checkpoint), str(checkpoint)])
    assert not checkpoint.with_name("step_60_search").exists()
    assert set(CHOOSE) == set(RULES) - {"single_pass"}


def test_a_dataset_that_was_built_anew_is_refused(checkpoint):
    """By every command that answers a split; solve.py is in test_solve.py."""
    save_weights(checkpoint, load(checkpoint), data="0" * 32)
    this, data = str(checkpoint), str(checkpoint.parent.parent / "data")
    for command, config in (
        (lambda config, device: run_search(config, ONE, device), SearchConfig(checkpoint=[this])),
        (figures.make_figure, figures.FigureConfig(figure="steps", checkpoint=this, examples=1)),
        (lambda config, device: evaluate_checkpoint(config, ONE, device), EvalConfig(checkpoint=this)),
    ):
        with pytest.raises(UserError, match="it was built anew; give data_path"):
            command(config, CPU)
        command(config.model_copy(update={"data_path": data}), CPU)


def test_checkpoints_of_different_datasets_need_a_data_path(checkpoint, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "other")
    path = tmp_path / "other/all_config.yaml"
    path.write_text(path.read_text().replace(str(tmp_path / "data"), str(tmp_path / "elsewhere")))
    both = [str(checkpoint), str(tmp_path / "other/step_60")]
    with pytest.raises(UserError, match="name one with data_path"):
        searched(both)
    assert searched(both, data_path=str(tmp_path / "data"))["right"]["majority"] == RIGHT


# The earlier name


def test_the_earlier_name_takes_the_earlier_keys(checkpoint, capsys, monkeypatch):
    words = [f"checkpoint={checkpoint}", "copies=3", "max_steps=2", "json=true"]
    report = json.loads(here(ensemble.main, *words))
    assert capsys.readouterr().err.startswith(f"{ensemble.SUCCESSOR}\n")
    assert (report["copies"], report["views"], report["max_steps"], report["depth"]) == (3, 3, [2], [2])
    theirs = searched(checkpoint, views=3, depth=2)
    assert report["right"] == theirs["right"] | {"confidence": theirs["right"]["q"]}
    assert not [path for path in checkpoint.parent.iterdir() if path.name.endswith("_search")][1:]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        here(ensemble.main, *words)
    assert "start it with python, not torchrun" in capsys.readouterr().err


def test_it_takes_as_many_copies_as_the_kind_suggests(checkpoint):
    assert json.loads(here(ensemble.main, f"checkpoint={checkpoint}", "--max-steps=1", "--json"))["copies"] == 32


def test_warnings_stay_beside_json(checkpoint):
    config = checkpoint.with_name("all_config.yaml")
    config.write_text(config.read_text().replace("forward_dtype: float32", "forward_dtype: float16"))
    assert "float16" in config.read_text()
    done = warm.run("-m", "evaluators.ensemble", f"checkpoint={checkpoint}", "copies=1", "json=true")
    assert json.loads(done.stdout)["copies"] == 1
    assert done.stderr.startswith(f"{ensemble.SUCCESSOR}\nforward_dtype=float16 is no longer supported: using auto\n")
