"""Voting over ARC augmentations, and its command line: python -m pytest tests/test_arc_voting.py"""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset.build_arc_dataset import ArcConfig, build
from dataset.format import read_identifiers
from errors import UserError
from evaluators import arc
from evaluators.arc import dataset_pairs, load_test_sets, vote
from evaluators.arc_voting import Candidate, VotedInput, attempts, count_votes, rank_candidates, scores
from puzzle_dataset import PuzzleDataset
from tests.arc_oracle import oracle_encode, write_tasks
from tests.arc_predictions import TASKS, Ballots, build_dataset, oracle_ranking, predict, raw_tasks, save_torch
from tests.sample_datasets import as_other_tools_write_it
from tests.warm import run
from training.distributed import Ranks
from training.prediction_rows import PredictionRows
from training.predictions import PredictionWriter

REFERENCE = Path(__file__).parent / "reference" / "arc"
PIPELINE = REFERENCE.parent / "pipeline" / "dataset"
KS = (1, 2, 3, 4, 10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("arc"))


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m evaluators.arc …` in this process; -> (stdout, stderr)."""

    def call(*args: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["arc", *map(str, args)])
        capsys.readouterr()  # of a build
        arc.main()
        return capsys.readouterr()

    return call


def chunks(rows: dict[str, np.ndarray], size: int = 10):
    for start in range(0, len(rows["inputs"]), size):
        here = {key: values[start : start + size] for key, values in rows.items()}
        yield PredictionRows(
            here["inputs"], here["labels"], here["puzzle_identifiers"], here["predictions"], here["q_halt_logits"], None
        )


def oracle_scores(ballots: Ballots, ks=KS) -> dict:
    task, fractional = {}, {}
    for k in ks:
        shares = []
        for name in TASKS:
            pairs = raw_tasks()[name]["test"]
            solved = [
                pair["output"] in [answer for answer, _, _ in oracle_ranking(ballots.get((name, which), []))[:k]]
                for which, pair in enumerate(pairs)
            ]
            shares.append(sum(solved) / len(solved))
        task[str(k)] = sum(share == 1 for share in shares) / len(TASKS)
        fractional[str(k)] = sum(shares) / len(TASKS)
    return {"num_tasks": len(TASKS), "task": pytest.approx(task), "fractional": pytest.approx(fractional)}


def reference_rows() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "voting_predictions.npz") as file:
        return dict(file)


def test_the_original_scores(tmp_path):
    """Through the command line, with no more of the dataset than its identifiers."""
    text = (REFERENCE / "voting_expected.txt").read_text()
    expected = {k: float(percent) for k, percent in re.findall(r"(\d+)-shot: ([\d.]+)%", text)}
    assert len(expected) == 6
    (tmp_path / "data").mkdir()
    shutil.copy(REFERENCE / "voting_identifiers.json", tmp_path / "data/identifiers.json")
    prefix = save_torch(tmp_path / "step_9", reference_rows(), padding=0)
    done = run(
        "-m", "evaluators.arc", f"dataset={tmp_path / 'data'}", f"predictions={prefix}", f"k={','.join(expected)}",
        "json=true",
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert f"Number of puzzles {result['num_tasks']}\n" in text
    assert {k: round(100 * share, 2) for k, share in result["task"].items()} == expected


def test_votes_equal_a_plain_oracle(dataset):
    identifiers = read_identifiers(dataset)
    pairs = dataset_pairs(load_test_sets(dataset), identifiers)
    assert list(pairs) == list(TASKS)
    ties, partial = 0, 0
    for seed, right in enumerate((0.15, 0.2, 0.3, 0.4)):
        rows, ballots = predict(dataset, seed, right)
        votes, seen = count_votes(chunks(rows), identifiers)
        assert seen == pairs
        tasks = rank_candidates(votes, pairs)
        for name, tests in tasks.items():
            for which, (test, pair) in enumerate(zip(tests, raw_tasks()[name]["test"], strict=True)):
                assert test.input.tolist() == pair["input"]
                assert test.answer.tolist() == pair["output"]
                answers, counts, confidences = zip(*oracle_ranking(ballots[name, which]), strict=True)
                assert [one.grid.tolist() for one in test.candidates] == list(answers)
                assert [one.votes for one in test.candidates] == list(counts)
                np.testing.assert_allclose([one.confidence for one in test.candidates], confidences, rtol=1e-6)
                ties += len(counts) - len(set(zip(counts, confidences, strict=True)))
        result = scores(tasks, KS)
        assert result == oracle_scores(ballots)
        partial += result["task"] != result["fractional"]
    assert ties and partial


def test_ties_beyond_float32_go_to_the_first_seen(dataset):
    """sigmoid(30) and sigmoid(40) are both 1 in float32, as in the original."""
    rows, _ = predict(dataset, 0)
    plain = np.flatnonzero(rows["puzzle_identifiers"] == read_identifiers(dataset).index("2c0b0aff"))
    order = np.tile(plain, 3)
    rows = {key: values[order].copy() for key, values in rows.items()}
    for i, (colour, logit) in enumerate([(1, 30.0), (2, 40.0), (3, 10.0)]):
        rows["predictions"][i] = oracle_encode([[colour]])
        rows["q_halt_logits"][i] = logit
    votes, pairs = count_votes(chunks(rows, 2), read_identifiers(dataset))
    (test,) = rank_candidates(votes, pairs)["2c0b0aff"]
    assert [one.grid.tolist() for one in test.candidates] == [[[1]], [[2]], [[3]]]
    assert test.candidates[0].confidence == test.candidates[1].confidence == 1
    # Dealt out to ranks, which are read one after another
    for examples in ([7, 4, 9], [2, 8, 1]):
        votes, pairs = count_votes(
            (replace(part, examples=np.array([one])) for part, one in zip(chunks(rows, 1), examples, strict=True)),
            read_identifiers(dataset),
        )
        (test,) = rank_candidates(votes, pairs)["2c0b0aff"]
        first = [[[2]], [[1]]] if examples[1] < examples[0] else [[[1]], [[2]]]
        assert [one.grid.tolist() for one in test.candidates] == [*first, [[3]]]


def test_a_set_without_examples_has_no_pairs(dataset):
    (whole,) = load_test_sets(dataset)
    none = np.zeros(0, np.int64)
    empty = replace(
        whole, inputs=whole.inputs[:0], labels=whole.labels[:0], puzzle_identifiers=none,
        puzzle_indices=np.zeros(1, np.int64), group_indices=np.zeros(1, np.int64),
    )  # fmt: skip
    identifiers = read_identifiers(dataset)
    assert dataset_pairs([empty, whole], identifiers) == dataset_pairs([whole], identifiers)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command(dataset, tmp_path, command, ranks):
    rows, ballots = predict(dataset, 3)
    prefix = save_torch(tmp_path / "step_1", rows, ranks)
    arguments = (f"dataset={dataset}", f"predictions={prefix}", f"submission={tmp_path / 'out.json'}")
    out, err = command(*arguments, "json=true", f"k={','.join(map(str, KS))}")
    expected = oracle_scores(ballots)
    assert json.loads(out) == expected
    assert "warning" not in err
    assert command(*arguments, "json=true", f"k={list(KS)}")[0] == out

    submission = json.loads((tmp_path / "out.json").read_text())
    assert list(submission) == list(TASKS)
    for name in TASKS:
        for which, entry in enumerate(submission[name]):
            first, second = (answer or [[0]] for answer, _, _ in oracle_ranking(ballots[name, which])[:2])
            assert entry == {"attempt_1": first, "attempt_2": second}
        assert len(submission[name]) == len(raw_tasks()[name]["test"])

    lines = command(*arguments[:2], "k=2")[0].splitlines()
    assert lines[0] == f"4 tasks with 6 test inputs, {len(rows['inputs'])} predictions"
    k, task, fractional = lines[-1].removesuffix("  <- the score: two attempts").split()
    assert (k, task) == ("2", f"{json.loads(out)['task']['2']:.2%}")
    assert fractional == f"{json.loads(out)['fractional']['2']:.2%}"


def test_the_table_marks_the_score_and_ends_where_nothing_changes(dataset, tmp_path, command):
    rows, ballots = predict(dataset, 3)
    arguments = (f"dataset={dataset}", f"predictions={save_torch(tmp_path / 'step_1', rows)}")
    most = max(len(oracle_ranking(ballot)) for ballot in ballots.values())
    assert 2 < most < 100
    lines = command(*arguments)[0].splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["1", "2", "10"] + ["100"] * (most > 10)
    assert [line for line in lines if line.endswith("<- the score: two attempts")] == [lines[3]]
    assert lines[-1] == f"no test input has more than {most} different answers, so that a larger K changes nothing"
    written = tmp_path / "out.json"
    out, err = command(*arguments, f"submission={written}", "json=true")
    assert set(json.loads(out)["task"]) == {"1", "2", "10", "100", "1000"}  # scripts look for these
    assert err.splitlines()[-1] == f"submission: {written}"


def test_checkpoints_vote_together_only_when_named(dataset, tmp_path, command):
    (rows, ballots), (more, other) = predict(dataset, 4), predict(dataset, 5)
    first, second = save_torch(tmp_path / "step_1", rows), save_torch(tmp_path / "step_10", more)
    arguments = (f"dataset={dataset}", "json=true", f"k={list(KS)}")
    assert json.loads(command(*arguments, f"predictions={first}")[0]) == oracle_scores(ballots)
    pooled = {key: ballots[key] + other[key] for key in ballots}
    assert json.loads(command(*arguments, f"predictions=[{first},{second}]")[0]) == oracle_scores(pooled)
    # Without the dataset's arrays too: the pairs of both are the same.
    shutil.copy(dataset / "identifiers.json", tmp_path)
    alone = command(f"dataset={tmp_path}", *arguments[1:], f"predictions=[{first},{second}]")[0]
    assert json.loads(alone) == oracle_scores(pooled)


def test_what_was_not_predicted_is_unsolved(dataset, tmp_path, command):
    rows, _ = predict(dataset, 6, right=1)
    names = read_identifiers(dataset)
    kept = np.array(["_t" in names[i] and "e1d2900e" not in names[i] for i in rows["puzzle_identifiers"]])
    prefix = save_torch(tmp_path / "step_1", {key: values[kept] for key, values in rows.items()})
    out, err = command(
        f"dataset={dataset}", f"predictions={prefix}", f"submission={tmp_path / 'out.json'}", "json=true"
    )
    assert json.loads(out)["num_tasks"] == 4
    assert json.loads(out)["task"]["1"] == 0.75
    (warning,) = (line for line in err.splitlines() if "warning" in line)
    assert "1 of the 6 test inputs have no prediction and count as unsolved (e1d2900e)" in warning
    submission = json.loads((tmp_path / "out.json").read_text())
    assert submission["e1d2900e"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]
    only = raw_tasks()["2c0b0aff"]["test"][0]["output"]
    assert submission["2c0b0aff"] == [{"attempt_1": only, "attempt_2": only}]


@pytest.mark.parametrize(("ignored", "dtype"), [(None, np.int32), (-100, np.int8), (255, np.uint8)])
def test_datasets_of_other_builders_are_voted_on(dataset, tmp_path, command, ignored, dtype):
    rows, ballots = predict(dataset, 3)
    theirs = shutil.copytree(dataset, tmp_path / "theirs")
    as_other_tools_write_it(theirs, ignored, dtype)
    assert any("|||t" in name for name in read_identifiers(theirs))
    prefix = save_torch(tmp_path / "step_1", rows)
    arguments = (f"predictions={prefix}", "json=true", f"k={list(KS)}")
    assert json.loads(command(f"dataset={theirs}", *arguments)[0]) == oracle_scores(ballots)


def test_augmented_predictions_alone_do_not_say_what_was_asked(dataset, tmp_path):
    """Without the dataset's arrays the tasks are those of the puzzles that are not augmented: some may be missing."""
    rows, _ = predict(dataset, 6)
    names = read_identifiers(dataset)
    augmented = np.array(["_t" in names[i] for i in rows["puzzle_identifiers"]])
    prefix = save_torch(tmp_path / "step_1", {key: values[augmented] for key, values in rows.items()})
    shutil.copy(dataset / "identifiers.json", tmp_path)
    with pytest.raises(UserError, match="hold no ARC puzzle without augmentation"):
        vote(tmp_path, [prefix])


def test_private_tasks_are_answered_and_not_scored(tmp_path, command):
    """One test input of a task, and all of another, have no answer; a third task asks the same twice."""
    asked = raw_tasks()["e345f17b"]["test"]
    hidden = [{"input": pair["input"]} for pair in asked]
    contents = {
        "partly": raw_tasks()["e345f17b"] | {"test": [asked[0], hidden[1]]},
        "private": raw_tasks()["2c0b0aff"] | {"test": [{"input": raw_tasks()["2c0b0aff"]["test"][0]["input"]}]},
        "twice": raw_tasks()["e345f17b"] | {"test": [asked[1], asked[0], asked[1]]},
    }
    write_tasks(tmp_path / "raw/evaluation", contents)
    data = tmp_path / "data"
    build(ArcConfig(dataset_dirs=[str(tmp_path / "raw")], output_dir=str(data), num_aug=2))
    inputs, labels = (np.load(data / f"test/all__{field}.npy") for field in ("inputs", "labels"))
    ids, sizes = (
        np.load(data / "test/all__puzzle_identifiers.npy"),
        np.diff(np.load(data / "test/all__puzzle_indices.npy")),
    )
    answers = labels.copy()
    answers[~labels.any(1), 0] = 7  # a grid of one cell; others have none
    answers[np.flatnonzero(~labels.any(1))[1::2]] = 0
    rows = {
        "inputs": inputs.astype(np.int32), "labels": np.where(labels, labels.astype(np.int32), -100),
        "puzzle_identifiers": np.repeat(ids, sizes), "predictions": answers,
        "q_halt_logits": np.zeros(len(inputs), np.float32),
    }  # fmt: skip
    prefix, files = save_torch(tmp_path / "step_1", rows), [tmp_path / "submission.json", tmp_path / "voted.json"]
    arguments = (f"dataset={data}", f"predictions={prefix}", f"submission={files[0]}", f"candidates={files[1]}", "k=1")
    out, err = command(*arguments)
    assert out.splitlines() == [
        "3 tasks with 6 test inputs, 18 predictions",
        "2 of 6 test inputs have no answer and are not scored",
        "    K     task  fractional",
        "    1  100.00%     100.00%",
        f"submission: {files[0]}",
        f"candidates: {files[1]}",
    ]
    assert "warning" not in err
    result = {"num_tasks": 2, "task": {"1": 1.0}, "fractional": {"1": 1.0}, "without_answer": 2}
    assert json.loads(command(*arguments, "json=true")[0]) == result

    submission = json.loads(files[0].read_text())
    right = [pair["output"] for pair in asked]
    assert {task: len(entries) for task, entries in submission.items()} == {"partly": 2, "private": 1, "twice": 3}
    assert submission["twice"] == [{"attempt_1": right[i], "attempt_2": right[i]} for i in (1, 0, 1)]
    assert all(len(grid) and len(grid[0]) for entry in submission["private"] for grid in entry.values())
    voted = json.loads(files[1].read_text())
    ranks = {task: [entry["rank"] for entry in entries] for task, entries in voted.pop("tasks").items()}
    assert ranks == {"partly": [1, None], "private": [None], "twice": [1, 1, 1]}
    assert voted == {
        "format": 1, "dataset": str(data), "split": "test", "predictions": [str(prefix)], "scores": result,
    }  # fmt: skip
    # Without the arrays, the predictions say as much, but for what is asked twice.
    shutil.copy(data / "identifiers.json", tmp_path)
    alone = command(f"dataset={tmp_path}", *arguments[1:2], "json=true", "k=1")[0]
    assert json.loads(alone) == result


def test_nothing_is_scored_where_nobody_knows_an_answer(tmp_path, command):
    task = raw_tasks()["2c0b0aff"]
    write_tasks(tmp_path / "raw/any", {"a": task | {"test": [{"input": pair["input"]} for pair in task["test"]]}})
    build(ArcConfig(dataset_dirs=[str(tmp_path / "raw")], output_dir=str(tmp_path / "data"), num_aug=0))
    inputs = np.load(tmp_path / "data/test/all__inputs.npy").astype(np.int32)
    rows = {
        "inputs": inputs, "labels": np.full_like(inputs, -100), "puzzle_identifiers": np.array([1]),
        "predictions": np.zeros_like(inputs), "q_halt_logits": np.zeros(1, np.float32),
    }  # fmt: skip
    arguments = (f"dataset={tmp_path / 'data'}", f"predictions={save_torch(tmp_path / 'step_1', rows)}", "k=2")
    assert command(*arguments)[0].splitlines()[1:] == ["1 of 1 test inputs have no answer and are not scored"]
    result = json.loads(command(*arguments, "json=true")[0])
    assert result == {"num_tasks": 0, "task": {"2": None}, "fractional": {"2": None}, "without_answer": 1}


def test_the_file_of_candidates(dataset, tmp_path, command):
    """In the order of the voting, ten at most, with the place of the right answer among all of them."""
    rows, ballots = predict(dataset, 3, right=0.2)
    plain = np.flatnonzero(rows["puzzle_identifiers"] == read_identifiers(dataset).index("2c0b0aff"))
    more = {key: np.repeat(values[plain[:1]], 12, axis=0) for key, values in rows.items()}
    for number in range(12):  # twelve grids of one row
        more["predictions"][number] = oracle_encode([[number % 10] * (number + 1)])
        ballots["2c0b0aff", 0].append(([[number % 10] * (number + 1)], float(more["q_halt_logits"][number])))
    rows = {key: np.concatenate([values, more[key]]) for key, values in rows.items()}
    prefix, file = save_torch(tmp_path / "step_1", rows), tmp_path / "voted.json"
    command(f"dataset={dataset}", f"predictions={prefix}", f"candidates={file}")
    found = json.loads(file.read_text())["tasks"]
    assert list(found) == list(TASKS)
    ranks = []
    for (task, which), votes in ballots.items():
        entry, ranking = found[task][which], oracle_ranking(votes)
        places = [place for place, one in enumerate(ranking, 1) if one[0] == raw_tasks()[task]["test"][which]["output"]]
        ranks += places or [None]
        assert (entry["rank"], entry["votes"], entry["different"]) == (ranks[-1], len(votes), len(ranking))
        assert [(one["grid"], one["votes"]) for one in entry["candidates"]] == [one[:2] for one in ranking[:10]]
        confidences = [one["confidence"] for one in entry["candidates"]]
        assert confidences == pytest.approx([one[2] for one in ranking[:10]], abs=1e-6)
    assert None in ranks and 1 in ranks
    assert found["2c0b0aff"][0]["different"] > 10 == len(found["2c0b0aff"][0]["candidates"])


def test_another_split_is_voted_on(tmp_path, command):
    """Sets without test, such as ConceptARC, are scored on val."""
    write_tasks(tmp_path / "raw/concept", raw_tasks())
    build(
        ArcConfig(dataset_dirs=[str(tmp_path / "raw")], output_dir=str(tmp_path / "data"), num_aug=2, val_fraction=0.9)
    )
    shutil.copytree(tmp_path / "data/val", tmp_path / "as_test/test")
    shutil.copy(tmp_path / "data/identifiers.json", tmp_path / "as_test")
    rows, ballots = predict(tmp_path / "as_test", 3)
    prefix = save_torch(tmp_path / "step_1", rows)
    arguments = (f"predictions={prefix}", "json=true", f"k={list(KS)}")
    assert json.loads(command(f"dataset={tmp_path / 'data'}", "split=val", *arguments)[0]) == oracle_scores(ballots)


def test_attempts_without_a_cell():
    empty, grid = Candidate(b"\0\0", 3, 0.5), Candidate(b"\1\2\7\4", 1, 0.5)
    test = VotedInput(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), [empty, grid])
    assert attempts(test) == [[[0]], [[7, 4]]]
    assert test.rank == float("inf")


def test_mistakes_are_refused_in_one_line(dataset, tmp_path, command, capsys):
    prefix = save_torch(tmp_path / "step_1", predict(dataset, 7)[0])
    given = (f"dataset={dataset}", f"predictions={prefix}")

    def line(*args: object) -> str:
        with pytest.raises(SystemExit) as stop:
            command(*args)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert not out
        (only,) = err.splitlines()
        return only

    assert "k.1" in line(*given, "k=1,0")
    assert "k.0" in line(*given, "k=two")
    assert "k: " in line(*given, "k=[]")
    assert "json: " in line(*given, "json=maybe")
    assert "did you mean 'json'" in line(*given, "jsn=true")
    assert "submission=" in line(*given, f"submission={tmp_path / 'nowhere' / 'out.json'}")
    assert "submission=" in line(*given, f"submission={tmp_path}")
    assert "candidates=" in line(*given, f"candidates={tmp_path / 'out.txt'}")
    same = [f"{option}={tmp_path / 'out.json'}" for option in ("submission", "candidates")]
    assert "submission and candidates name the same file" in line(*given, *same)
    assert "no predictions of" in line(given[0], f"predictions={tmp_path / 'step_2'}")
    assert "no predictions of" in line(given[0], f"predictions=[{prefix},{tmp_path / 'step_2'}]")
    assert "dataset: " in line(given[1])


def test_a_dataset_of_another_content_must_be_insisted_on(dataset, tmp_path, command, capsys):
    rows, _ = predict(dataset, 9)
    opened = PuzzleDataset.alone(dataset, "test", 8)
    with PredictionWriter(
        tmp_path / "step_1", opened, Ranks(0, 1, 0), checkpoint="x", halt="max", max_steps=1
    ) as writer:
        zeros = np.zeros(len(rows["predictions"]))
        fields = dict(answers=rows["predictions"], q_halt_logits=rows["q_halt_logits"], q_continue_logits=zeros)
        writer.append(fields | dict(examples=np.arange(len(zeros)), steps=zeros))
    manifest = tmp_path / "step_1_preds/manifest.json"
    arguments = (f"dataset={dataset}", f"predictions={tmp_path / 'step_1'}", "json=true")
    expected = command(*arguments)[0]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"data": "0" * 32}))
    with pytest.raises(SystemExit):
        command(*arguments)
    assert "give other_data=true" in capsys.readouterr().err
    assert command(*arguments, "other_data=true")[0] == expected


def test_what_does_not_fit_together_is_refused(dataset, tmp_path):
    rows, _ = predict(dataset, 8)
    prefix = save_torch(tmp_path / "step_1", rows)
    with pytest.raises(UserError, match=r"identifiers\.json is missing"):
        vote(tmp_path / "nothing", [prefix])
    for content, message in (("{", "not JSON"), ('{"a": 1}', "not a list of names")):
        (tmp_path / "identifiers.json").write_text(content)
        with pytest.raises(UserError, match=message):
            vote(tmp_path, [prefix])
    with pytest.raises(UserError, match="test holds 4×4 Sudokus, not ARC tasks"):
        vote(PIPELINE, [prefix])
    names = read_identifiers(dataset)
    with pytest.raises(UserError, match="ends at 20"):
        count_votes(chunks(rows), names[:21])
    with pytest.raises(UserError, match="ends at 20"):
        dataset_pairs(load_test_sets(dataset), names[:21])
    votes, pairs = count_votes(chunks(rows), names)
    del pairs["e1d2900e"]
    with pytest.raises(UserError, match="none of the test inputs of task e1d2900e"):
        rank_candidates(votes, pairs)
