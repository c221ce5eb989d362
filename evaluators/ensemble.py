"""Voting over transformed copies of the puzzles, without labels.

    python -m evaluators.ensemble checkpoint=<run>/step_<n> [key=value …]

The copies are made by the symmetries of the kind of puzzle. Every model answers every copy, and the answers are
transformed back. One answer is chosen: by the model's own confidence (q_halt), by majority, or by majority among the
answers that obey the rules of the puzzle. `vote` does all that without labels. `score` gets the labels afterwards, to
count the right choices, and the puzzles that any copy got right, which is an upper bound and not a method. This runs in
one process.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from errors import UserError, one_line_errors
from models.act import ACTModel
from models.losses import IGNORE_LABEL_ID
from puzzles.kind import PAD, Transform
from training.checkpoints import load_model
from training.compilation import EVALUATION, compile_blocks
from training.config import PretrainConfig, load_config
from training.data import open_to_answer
from training.distributed import DEVICES, select_device
from training.evaluation import check_data
from training.metrics import progress_bar, start_logging
from training.options import StrictModel, from_cli
from training.predictions import MAX_STEPS
from training.reasoning import reasoning_steps

log = logging.getLogger(__name__)

MAX_COPIES = 10_000  # of a puzzle
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]  # puzzles and answers (…, cells) -> whether they obey the rules
Counted = Callable[[np.ndarray, np.ndarray], np.ndarray]  # the same -> the answers, PAD in cells that do not count
METHODS = {
    "single_pass": "single pass",
    "confidence": "most confident copy",
    "majority": "majority",
    "majority_valid": "majority of valid answers",
}


class EnsembleConfig(StrictModel):
    checkpoint: list[str] = Field(min_length=1, description="step_<n> in its run folder; several, [a,b], vote together")
    copies: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COPIES,
        description="copies of each puzzle, itself included; default: as its kind suggests",
    )
    split: str = Field(default="test", description="split of the dataset")
    data_path: str | None = Field(default=None, description="a dataset other than the run's")
    max_examples: int | None = Field(
        default=None, ge=1, description="size of a seeded subset of the puzzles, the same as in evaluate.py"
    )
    max_steps: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="reasoning steps; default: as in training"
    )
    global_batch_size: int | None = Field(default=None, ge=1, description="puzzles at a time; default: the run's")
    seed: int = Field(default=0, ge=0, description="seed of the copies")
    device: Literal[DEVICES] = Field(default="auto", description="auto, cuda, mps or cpu")
    as_json: bool = Field(default=False, alias="json", description="print JSON instead of a table")

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value):
        return value if isinstance(value, list) else [value]


@dataclass
class Choices:
    """The answers of all copies of B puzzles, K per puzzle over all models, and which of them were chosen."""

    answers: np.ndarray  # (B, K, cells) uint8, transformed back; the copies of the first model come first
    confidence: np.ndarray  # (B, K) float64: sigmoid(q_halt), NaN where the model's values are no numbers
    valid: np.ndarray  # (B, K) bool: obeys the rules
    chosen: dict[str, np.ndarray]  # method -> (B,): the copy whose answer it chose


def vote(
    models: Sequence[ACTModel],
    inputs: np.ndarray,  # (B, cells)
    puzzle_identifiers: np.ndarray,  # (B,)
    transforms: Sequence[Transform],  # the identity first
    is_valid: Rule,
    max_steps: int | None = None,
    after_pass: Callable[[], object] = lambda: None,
    counted: Counted = lambda inputs, answers: answers,
) -> Choices:
    """Let every model answer every copy and choose; `after_pass` is called after each copy of each model.

    Answers that differ only in cells that do not count are one answer.
    """
    answers, confidence = answer_copies(models, inputs, puzzle_identifiers, transforms, max_steps, after_pass)
    answers = counted(inputs[:, None], answers)
    valid = is_valid(inputs[:, None], answers)
    return Choices(answers, confidence, valid, choose(answers, confidence, valid))


def answer_copies(
    models: Sequence[ACTModel],
    inputs: np.ndarray,
    puzzle_identifiers: np.ndarray,
    transforms: Sequence[Transform],
    max_steps: int | None = None,
    after_pass: Callable[[], object] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """-> the answers after the last step, transformed back, (B, K, cells) uint8; sigmoid(q_halt), (B, K) float64.

    Where a model's values are no numbers there is no answer: the cells are PAD, and the confidence is NaN.
    """
    answers, q_halt = [], []
    for model in models:
        device = next(model.parameters()).device
        spare = max(0, model.data.batch_size - len(inputs))  # blocks are compiled for one shape

        def padded(rows: np.ndarray, spare: int = spare, device: torch.device = device) -> torch.Tensor:
            widths = [(0, spare)] + [(0, 0)] * (rows.ndim - 1)
            return torch.from_numpy(np.pad(rows.astype(np.int32), widths)).to(device)

        identifiers = padded(puzzle_identifiers)
        for transform in transforms:
            for step in reasoning_steps(model, padded(transform.apply(inputs)), identifiers, max_steps):
                last = step
            numbers = last.is_number[: len(inputs)].cpu()
            answer = transform.undo(last.answer[: len(inputs)].cpu().numpy())
            answers.append(np.where(numbers[:, None], answer, PAD))
            q_halt.append(last.q_halt[: len(inputs)].cpu().double().where(numbers, torch.nan))
            after_pass()
    return np.stack(answers, axis=1), torch.sigmoid(torch.stack(q_halt, dim=1)).numpy()


def choose(answers: np.ndarray, confidence: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """(B, K, cells), (B, K), (B, K) -> for each method the chosen copy of each puzzle (B,); copy 0 is the single pass.

    If no answer is valid, the majority of the valid ones is that of all answers. A copy without an answer, whose
    confidence is NaN, has no vote; if no copy has one, copy 0 is chosen.
    """
    majorities, valid_majorities = [], []
    for row, sure, obeys in zip(answers, confidence, valid, strict=True):
        voters = np.flatnonzero(~np.isnan(sure))
        majorities.append(voters[majority(row[voters], sure[voters])] if len(voters) else 0)
        among = voters[obeys[voters]]
        valid_majorities.append(among[majority(row[among], sure[among])] if len(among) else majorities[-1])
    chosen = {
        "single_pass": np.zeros(len(answers), np.intp),
        "confidence": np.nan_to_num(confidence, nan=-1.0).argmax(axis=1),  # the first among equals
        "majority": np.array(majorities, np.intp),
        "majority_valid": np.array(valid_majorities, np.intp),
    }
    assert chosen.keys() == METHODS.keys()
    return chosen


def majority(answers: np.ndarray, confidence: np.ndarray) -> int:
    """Answers (K, cells), confidence (K,) -> the first copy that gave the most frequent answer.

    Among equally frequent answers, the one with the higher mean confidence wins, then the one seen first.
    """
    voters: dict[bytes, list[int]] = {}
    for copy, answer in enumerate(answers):
        voters.setdefault(answer.tobytes(), []).append(copy)
    return max(voters.values(), key=lambda copies: (len(copies), confidence[copies].mean()))[0]


def score(choices: Choices, labels: np.ndarray) -> dict[str, int]:
    """Labels (B, cells), ignored: -100 -> how many puzzles each method got right, and the oracle (any copy right)."""
    labelled = labels != IGNORE_LABEL_ID
    right = ((choices.answers == labels[:, None]) | ~labelled[:, None]).all(-1) & labelled.any(-1)[:, None]  # (B, K)
    rows = np.arange(len(labels))
    counts = {method: int(right[rows, copy].sum()) for method, copy in choices.chosen.items()}
    return counts | {"oracle": int(right.any(axis=1).sum())}


def ensemble(config: EnsembleConfig, device: torch.device) -> dict:
    """Vote on a split and count the right answers; -> the report, as json=true prints it."""
    checkpoints = [Path(path) for path in config.checkpoint]
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise UserError("a checkpoint is named twice, and would have two votes; name each once")
    runs = [load_config(str(path.parent / "all_config.yaml")) for path in checkpoints]
    for path, run in zip(checkpoints, runs, strict=True):
        check_data(path, run, config.data_path)
    dataset = open_to_answer(
        runs[0],
        config.split,
        data_path=config.data_path or _common_dataset(runs),
        batch_size=config.global_batch_size or runs[0].global_batch_size,
        max_examples=config.max_examples,
    )
    dataset.set_batch_size(min(dataset.config.global_batch_size, dataset.num_examples()))  # more would be padding
    kind = dataset.kind
    transforms = kind.symmetries(config.copies or kind.copies(), config.seed)
    models, passes = [], dataset.num_test_batches() * len(transforms)
    for path, run in zip(checkpoints, runs, strict=True):
        head = load_model(path, run, dataset.metadata, batch_size=dataset.local_batch_size, device=device)
        compile_blocks(head.model, "auto", device, EVALUATION * passes * (config.max_steps or run.arch.halt_max_steps))
        models.append(head.model)

    right, valid, valid_answers = Counter(), Counter(), 0
    no_answer = np.zeros(len(models), int)
    bar = progress_bar(total=passes * len(models), desc="vote", unit="batch", enabled=True, leave=False)
    with bar:
        for _, batch, count in dataset:
            puzzles = (batch[field][:count].numpy() for field in ("inputs", "puzzle_identifiers"))
            choices = vote(models, *puzzles, transforms, kind.valid, config.max_steps, bar.update, kind.counted)
            right.update(score(choices, batch["labels"][:count].numpy()))
            valid.update({m: int(choices.valid[np.arange(count), copy].sum()) for m, copy in choices.chosen.items()})
            valid_answers += int(choices.valid.sum())
            no_answer += np.isnan(choices.confidence).reshape(count, len(models), -1).sum((0, 2))
    for path, times in zip(checkpoints, no_answer, strict=True):
        if times:
            log.warning("%d answers of %s are no numbers (NaN or infinite): they have no vote", times, path)
    return {
        "checkpoints": [str(path) for path in checkpoints],
        "dataset": f"{dataset.config.dataset_path}/{dataset.split}",
        "puzzles": dataset.num_examples(),
        "copies": len(transforms),
        "seed": config.seed,
        "max_steps": [config.max_steps or run.arch.halt_max_steps for run in runs],
        "right": {method: right[method] for method in METHODS},
        "has_rules": kind.has_rules,  # without rules every answer that is a board is valid
        "valid": {method: valid[method] for method in METHODS},
        "oracle_right": right["oracle"],  # looks at the labels: an upper bound
        "valid_answers": valid_answers / (dataset.num_examples() * len(transforms) * len(models)),
    }


def _common_dataset(runs: list[PretrainConfig]) -> str:
    paths = sorted({run.data_path for run in runs})
    if len(paths) > 1:
        raise UserError(f"the checkpoints are of different datasets ({', '.join(paths)}); name one with data_path=…")
    return paths[0]


def table(report: dict) -> str:
    puzzles, models = report["puzzles"], len(report["checkpoints"])
    of = f"{models} models × " if models > 1 else ""
    lines = [
        f"{report['dataset']}: {puzzles} puzzles × {of}{report['copies']} copies",
        f"{'':<28}{'right':>8}{'':>9}{'valid':>8}",
    ]
    for method, name in METHODS.items():
        right, valid = report["right"][method], report["valid"][method]
        lines.append(f"{name:<28}{right:>8}{right / puzzles:>9.1%}{valid / puzzles:>8.1%}")
    oracle = report["oracle_right"]
    lines.append(f"{'oracle: any copy right':<28}{oracle:>8}{oracle / puzzles:>9.1%}   (upper bound: uses the labels)")
    lines.append(f"{report['valid_answers']:.1%} of all copies' answers are valid")
    if not report["has_rules"]:
        lines[-1] = "there is no rule to choose by: every answer that holds a grid counts as valid"
    return "\n".join(lines)


def main() -> None:
    with one_line_errors():
        config = from_cli(EnsembleConfig, sys.argv[1:], __doc__)
        device = select_device(config.device)
        start_logging(is_main=True, as_json=config.as_json)
        report = ensemble(config, device)
        print(json.dumps(report, indent=1, allow_nan=False) if config.as_json else table(report))


if __name__ == "__main__":
    main()
