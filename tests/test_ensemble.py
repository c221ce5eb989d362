"""Voting over transformed copies: python -m pytest tests/test_ensemble.py"""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch

from dataset.format import SplitWriter
from errors import UserError
from evaluate import EvalConfig, evaluate_checkpoint
from evaluators import ensemble, figures
from evaluators.ensemble import Choices, choose, score, vote
from puzzles.kind import find_kind
from tests import warm
from tests.flattering import PUZZLES, RIGHT, flattering_run
from tests.launch import run
from tests.runs import PIPELINE, load
from tests.scripted import step
from training.checkpoints import save_weights
from training.distributed import Ranks

METHODS = ("single_pass", "confidence", "majority", "majority_valid")


@pytest.fixture
def checkpoint(tmp_path):
    return flattering_run(tmp_path)


def answers(*letters: str) -> np.ndarray:
    """One puzzle a string, one copy a letter: (puzzles, copies, 3), equal letters are equal answers."""
    tokens = np.array([[ord(letter) for letter in row] for row in letters], np.uint8)
    return np.repeat(tokens[:, :, None], 3, axis=2)


# Copies' answers, their confidence and validity -> the answer of each method, worked out by hand
CASES = {
    "the majority is wrong, one valid answer": ("ABBBC", (0.1, 0.2, 0.2, 0.2, 0.9), "00001", "ACBC"),
    "a tie goes to the higher mean": ("AABBC", (0.5, 0.1, 0.4, 0.4, 0.3), "11111", "AABB"),
    "not to the highest": ("ABABC", (0.9, 0.5, 0.0, 0.5, 0.3), "11111", "AABB"),
    "equal means go to the first": ("CABBA", (0.5, 0.5, 0.5, 0.5, 0.5), "11111", "CCAA"),
    "none valid: the majority of all": ("ABBCC", (0.9, 0.2, 0.2, 0.1, 0.1), "00000", "AABB"),
    "a tie among the valid ones": ("AAABC", (0.1, 0.1, 0.1, 0.2, 0.3), "00011", "ACAC"),
    "more valid copies win": ("AAABBC", (0.1, 0.1, 0.1, 0.2, 0.2, 0.9), "000111", "ACAB"),
}


NAN = float("nan")
CASES |= {
    "no number has no vote": ("AABBC", (NAN, NAN, 0.2, 0.1, NAN), "11111", "ABBB"),
    "nor the highest confidence": ("ABC", (0.1, NAN, 0.2), "111", "ACCC"),
    "nor a valid one": ("ABBC", (0.3, NAN, NAN, 0.2), "0110", "AAAA"),
    "none is a number": ("ABBC", (NAN, NAN, NAN, NAN), "0110", "AAAA"),
}


@pytest.mark.parametrize("case", CASES)
def test_choices_by_hand(case):
    letters, confidence, valid, expected = CASES[case]
    rows = answers(letters)
    chosen = choose(rows, np.array([confidence]), np.array([[flag == "1" for flag in valid]]))
    assert "".join(letters[chosen[method][0]] for method in METHODS) == expected


def test_scores_by_hand():
    rows = answers("AAB", "BAB", "CCC", "AAA")
    labels = np.full((4, 3), ord("A"))
    labels[1, 2] = -100  # ignored
    labels[3] = -100  # nothing to be right about
    chosen = {"single_pass": np.array([0, 0, 0, 0]), "majority": np.array([2, 1, 0, 0])}
    choices = Choices(rows, np.ones((4, 3)), np.ones((4, 3), bool), chosen)
    assert score(choices, labels) == {"single_pass": 1, "majority": 1, "oracle": 2}
    one_cell_off = rows.copy()
    one_cell_off[0, 0, 1] += 1
    choices = Choices(one_cell_off, np.ones((4, 3)), np.ones((4, 3), bool), chosen)
    assert score(choices, labels) == {"single_pass": 0, "majority": 1, "oracle": 2}


class ScriptedModel(torch.nn.Module):
    """Stands for a model whose answers to each copy, in the puzzles' own frame, are known."""

    def __init__(self, by_copy: np.ndarray, q_halt: np.ndarray, batch_size: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.data = type("Data", (), {"batch_size": batch_size})
        self.by_copy, self.q_halt, self.seen, self.given = by_copy, q_halt, 0, []


def test_answers_come_back_to_the_puzzles_own_frame(monkeypatch):
    """Two models × 4 copies of 3 puzzles in batches of 5; only the last of two steps counts."""
    rng = np.random.default_rng(0)
    sudoku = find_kind("sudoku")(4, 4)
    transforms = sudoku.symmetries(4, seed=0)
    inputs, solutions = (np.load(PIPELINE / f"dataset/test/all__{field}.npy")[:3] for field in ("inputs", "labels"))
    scripts = rng.integers(0, 6, (2, 4, 3, 16), dtype=np.uint8)  # model, copy, puzzle
    scripts[1, 2, 0], scripts[0, 3, 2] = solutions[0], solutions[2]
    q_halt = rng.normal(size=(2, 4, 3)).astype(np.float32)

    def scripted_steps(model, given, identifiers, max_steps):
        assert given.dtype == identifiers.dtype == torch.int32
        assert identifiers.tolist() == [3, 4, 5, 0, 0]
        assert max_steps == 2
        copy, model.seen = model.seen, model.seen + 1
        model.given.append(given.numpy())
        answer = np.zeros((5, 16), np.int64)
        answer[:3] = transforms[copy].apply(model.by_copy[copy])
        q = torch.zeros(5)
        q[:3] = torch.from_numpy(model.q_halt[copy])
        yield step(1, torch.zeros(5, 16), torch.full((5,), 9.0))
        yield step(2, torch.from_numpy(answer), q)

    monkeypatch.setattr(ensemble, "reasoning_steps", scripted_steps)
    models = [ScriptedModel(scripts[i], q_halt[i], batch_size=5) for i in range(2)]
    passes = []
    choices = vote(
        models,
        inputs,
        np.array([3, 4, 5]),
        transforms,
        sudoku.valid,
        max_steps=2,
        after_pass=lambda: passes.append(1),
    )
    assert len(passes) == 8
    np.testing.assert_array_equal(choices.answers, scripts.reshape(8, 3, 16).swapaxes(0, 1))
    assert np.argwhere(choices.valid).tolist() == [[0, 6], [2, 3]]
    assert choices.chosen["majority_valid"][[0, 2]].tolist() == [6, 3]
    np.testing.assert_array_equal(choices.chosen["confidence"], q_halt.reshape(8, 3).argmax(0))
    np.testing.assert_allclose(choices.confidence, 1 / (1 + np.exp(-q_halt.reshape(8, 3).T)), atol=1e-6)
    for model in models:
        np.testing.assert_array_equal(model.given[0][:3], inputs)  # the identity first
        assert not any(given[3:].any() for given in model.given)
        assert len({given.tobytes() for given in model.given}) == 4


def test_choosing_is_not_given_the_labels():
    for function in (vote, ensemble.answer_copies, choose, ensemble.majority):
        assert not {"labels", "label", "batch", "dataset"} & set(inspect.signature(function).parameters)


def test_other_labels_change_no_choice(checkpoint, tmp_path, monkeypatch):
    """The whole command on the dataset and on one whose labels are scrambled: only the counts differ."""

    def choices_of(data_path):
        made = []

        def recording_vote(*args):
            assert not any(args[1] is array for array in args[2:])
            made.append(vote(*args))
            return made[-1]

        monkeypatch.setattr(ensemble, "vote", recording_vote)
        config = ensemble.EnsembleConfig(checkpoint=str(checkpoint), copies=4, data_path=str(data_path))
        return made, ensemble.ensemble(config, torch.device("cpu"))

    data, scrambled = tmp_path / "data", tmp_path / "scrambled"
    shutil.copytree(data, scrambled)
    labels = np.load(scrambled / "test/all__labels.npy")
    np.save(scrambled / "test/all__labels.npy", 1 + labels % 5)
    first, report = choices_of(data)
    second, other = choices_of(scrambled)
    assert len(first) == len(second) == 3  # 21 puzzles in batches of 8
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.answers, b.answers)
        np.testing.assert_array_equal(a.valid, b.valid)
        assert {key: value.tolist() for key, value in a.chosen.items()} == {k: v.tolist() for k, v in b.chosen.items()}
    assert report["right"]["single_pass"] == RIGHT
    assert other["right"]["single_pass"] == other["oracle_right"] == 0
    assert report["valid"] == other["valid"]


def test_the_command(checkpoint, monkeypatch, capsys):
    other = checkpoint.with_name("step_0")
    shutil.copy(PIPELINE / "init_checkpoint.pt", other)
    arguments = [f"checkpoint=[{checkpoint},{other}]", "copies=3"]
    monkeypatch.setattr("sys.argv", ["ensemble", *arguments, "json=true"])
    ensemble.main()
    report = json.loads(capsys.readouterr().out)
    assert (report["puzzles"], report["copies"], report["max_steps"]) == (PUZZLES, 3, [4, 4])
    assert report["right"]["single_pass"] == RIGHT  # of the first checkpoint
    assert max(report["right"].values()) <= report["oracle_right"]

    lines = run("-m", "evaluators.ensemble", *arguments).stdout.splitlines()
    names = ["single pass", "most confident copy", "majority", "majority of valid answers", "oracle: any copy right"]
    rows = {name: next(line for line in lines if line.startswith(f"{name}  ")) for name in names}
    counts = [*report["right"].values(), report["oracle_right"]]
    assert [int(line.removeprefix(name).split()[0]) for name, line in rows.items()] == counts
    assert f"{RIGHT / PUZZLES:.1%}" in rows["single pass"]
    assert "upper bound: uses the labels" in rows["oracle: any copy right"]


def test_copies_and_rules_are_those_of_the_kind(checkpoint, monkeypatch):
    made = []

    def recording_vote(*args):
        made.append((args[3], vote(*args)))
        return made[-1][1]

    monkeypatch.setattr(ensemble, "vote", recording_vote)
    config = ensemble.EnsembleConfig(checkpoint=str(checkpoint), seed=5, max_steps=1)
    report = ensemble.ensemble(config, torch.device("cpu"))
    expected = find_kind("sudoku")(4, 4).symmetries(32, seed=5)
    for transforms, choices in made:
        assert [one.cells.tolist() for one in transforms] == [one.cells.tolist() for one in expected]
        assert [one.tokens.tolist() for one in transforms] == [one.tokens.tolist() for one in expected]
        rows = choices.answers.reshape(-1, 4, 4)
        complete = [all(set(line) == {2, 3, 4, 5} for line in (*board, *board.T)) for board in rows]
        assert not (choices.valid.ravel() & ~np.array(complete)).any()
    assert report["copies"] == 32


def test_one_copy_is_the_single_pass(checkpoint):
    config = ensemble.EnsembleConfig(checkpoint=str(checkpoint), copies=1, global_batch_size=16)
    report = ensemble.ensemble(config, torch.device("cpu"))
    assert set(report["right"].values()) == {report["oracle_right"]} == {RIGHT}


def test_a_copy_of_no_numbers_is_never_chosen(checkpoint, monkeypatch, caplog):
    """It would have the highest confidence of all: `argmax` takes NaN for the largest number."""
    steps = ensemble.reasoning_steps
    passes = []

    def broken(*args):
        *_, last = steps(*args)
        passes.append(1)
        if len(passes) % 2 == 0:  # the second of two copies
            last.q_halt = torch.where(torch.arange(len(last.q_halt)) < 3, torch.nan, last.q_halt)
        yield last

    monkeypatch.setattr(ensemble, "reasoning_steps", broken)
    config = ensemble.EnsembleConfig(checkpoint=str(checkpoint), copies=2, global_batch_size=21)
    chosen = []
    monkeypatch.setattr(ensemble, "score", lambda choices, labels: chosen.append(choices) or score(choices, labels))
    ensemble.ensemble(config, torch.device("cpu"))
    (choices,) = chosen
    assert not choices.answers[:3, 1].any()
    for copies in choices.chosen.values():
        assert copies[:3].tolist() == [0, 0, 0]
    assert caplog.messages == [f"3 answers of {checkpoint} are no numbers (NaN or infinite): they have no vote"]


def test_a_dataset_that_was_built_anew_is_refused(checkpoint):
    """By every command that answers a split; solve.py is in test_solve.py."""
    save_weights(checkpoint, load(checkpoint), data="0" * 32)
    this, data = str(checkpoint), str(checkpoint.parent.parent / "data")
    cpu = torch.device("cpu")
    for command, config in (
        (ensemble.ensemble, ensemble.EnsembleConfig(checkpoint=[this], copies=1)),
        (figures.make_figure, figures.FigureConfig(figure="steps", checkpoint=this, examples=1)),
        (lambda config, device: evaluate_checkpoint(config, Ranks(0, 1, 0), device), EvalConfig(checkpoint=this)),
    ):
        with pytest.raises(UserError, match="it was built anew; give data_path"):
            command(config, cpu)
        command(config.model_copy(update={"data_path": data}), cpu)


def test_warnings_stay_beside_json(checkpoint):
    config = checkpoint.with_name("all_config.yaml")
    config.write_text(config.read_text().replace("forward_dtype: float32", "forward_dtype: float16"))
    assert "float16" in config.read_text()
    done = warm.run("-m", "evaluators.ensemble", f"checkpoint={checkpoint}", "copies=1", "json=true")
    assert json.loads(done.stdout)["copies"] == 1
    assert done.stderr.startswith("forward_dtype=float16 is no longer supported: using auto\n")


def build(folder, inputs, vocab_size):
    folder.mkdir(parents=True)
    writer = SplitWriter(folder, "test", seq_len=inputs.shape[1])
    ones = np.ones(len(inputs), np.int32)
    writer.append(inputs, inputs, puzzle_identifiers=0 * ones, puzzle_sizes=ones, group_sizes=ones)
    writer.finish(vocab_size=vocab_size, num_puzzle_identifiers=1)
    return str(folder)


def test_mistakes_are_refused(checkpoint, tmp_path, monkeypatch):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            ensemble.ensemble(ensemble.EnsembleConfig(checkpoint=str(checkpoint), **changes), torch.device("cpu"))

    refused("has 3072 different ones", copies=9999)
    for absurd in (dict(copies=10**9), dict(max_steps=10**12)):
        with pytest.raises(ValueError, match="less than or equal to"):
            ensemble.EnsembleConfig(checkpoint=str(checkpoint), **absurd)
    refused("python -m evaluators.arc", data_path=build(tmp_path / "arc", np.full((2, 900), 2, np.uint8), 12))
    nothing = build(tmp_path / "none", np.full((2, 15), 2, np.uint8), 12)
    refused("15 cells with 12 tokens are none of", data_path=nothing)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("start it with python, not torchrun")


def test_checkpoints_of_different_datasets_need_a_data_path(checkpoint, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "other")
    path = tmp_path / "other/all_config.yaml"
    path.write_text(path.read_text().replace(str(tmp_path / "data"), str(tmp_path / "elsewhere")))
    config = dict(checkpoint=[str(checkpoint), str(tmp_path / "other/step_60")], copies=1)
    with pytest.raises(UserError, match="name one with data_path"):
        ensemble.ensemble(ensemble.EnsembleConfig(**config), torch.device("cpu"))
    report = ensemble.ensemble(ensemble.EnsembleConfig(**config, data_path=str(tmp_path / "data")), torch.device("cpu"))
    assert report["right"]["majority"] == RIGHT
