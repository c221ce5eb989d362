"""Think longer, start more often, and choose one answer without looking at a label.

    python -m evaluators.search checkpoint=<run>/step_<n> [key=value …]        or under torchrun

Each puzzle is answered by models × views × breadth trajectories: a view is a copy by a symmetry of the puzzle's kind,
breadth the number of starts of each. Several rules choose one of the answers (docs/search.md says how, and where they
are from), and all of them are reported from one pass:

    q               the trajectory with the highest Q(halt) after the last segment
    residual        the one whose state changes least
    majority        the most frequent answer
    majority_valid  the most frequent of those that obey the rules of the puzzle
    first_halt      the answer of the trajectory that wanted to halt first, as it was then
    agreement       the answer whose cells agree most with the others'

`choose` names the one that decides when a puzzle has settled (patience=…). pass@K, whether any answer is right, looks
at the labels: it is an upper bound and not a method. Results do not depend on the number of ranks. The records of the
puzzles, report.json and risk_coverage.png are left in <checkpoint>_search (evaluators/search_folder.py).
"""

import training.launcher
import training.threads  # before torch loads

# isort: split

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from dataset.format import content_digest
from errors import UserError, first_line, one_line_errors
from evaluators.abstention import COVERAGES, accuracy_at, auroc, risk_coverage
from evaluators.figure_plots import DPI, draw_risk_coverage
from evaluators.search_folder import CURVES, REPORT, Rows, prepare, read_rows, row_type, searching
from evaluators.search_rules import CHOOSE, RULES, Candidates, Choice, answers_of, choose, settled
from evaluators.trajectories import STARTS, Plan, Trajectories, state_bytes
from files import file_digest, write_atomically
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset
from puzzles.kind import Kind
from training.checkpoints import beside, find_checkpoint, load_model, open_run
from training.compilation import EVALUATION, compile_blocks
from training.config import PretrainConfig
from training.data import open_split
from training.distributed import DEVICES, Ranks, select_device
from training.evaluation import rows_at_a_time
from training.flops import META, flops_per_step
from training.memory import check_available
from training.metrics import progress_bar, start_logging
from training.options import StrictModel, from_cli
from training.prediction_rows import exactly_right
from training.predictions import MAX_STEPS

log = logging.getLogger(__name__)

Curve = tuple[np.ndarray, np.ndarray]  # coverage, risk
MAX_TRAJECTORIES = 10_000  # views, or starts, of a puzzle
SIGMA = 0.3


class SearchConfig(StrictModel):
    checkpoint: list[str] = Field(
        min_length=1, description="a step_<n> in its run folder, or the folder; several, [a,b], search together"
    )
    depth: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="segments (reasoning steps) at most; null: as in training"
    )
    breadth: int = Field(default=1, ge=1, le=MAX_TRAJECTORIES, description="starts of each view of a puzzle")
    start: Literal[STARTS] = Field(
        default="fixed",
        description="fixed: the model's own; random: drawn as EqR does; noise: the model's own + sigma × normal, the "
        "first of each view without noise",
    )
    sigma: float | None = Field(default=None, gt=0, le=100, description=f"of start=noise; null: {SIGMA}")
    views: int = Field(
        default=1, ge=1, le=MAX_TRAJECTORIES, description="copies by symmetries, the puzzle itself first"
    )
    choose: Literal[CHOOSE] | None = Field(
        default=None, description="the rule; null: majority_valid, or majority where puzzles have no rules to obey"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        le=MAX_STEPS,
        description="a puzzle is left once the chosen answer was the same for so many more segments; with first_halt, "
        "once a trajectory wants to halt; null: all segments are run",
    )
    split: str = Field(default="test", description="split of the dataset")
    data_path: str | None = Field(default=None, description="a dataset other than the run's")
    max_examples: int | None = Field(
        default=None, ge=1, description="size of a seeded subset of each set, the same as in evaluate.py"
    )
    global_batch_size: int | None = Field(
        default=None, ge=1, description="trajectories in a forward pass, of each rank; null: the run's, on CUDA more"
    )
    seed: int = Field(default=0, ge=0, description="seed of views, starts and noise")
    device: Literal[DEVICES] = Field(default="auto", description="auto, cuda, mps or cpu")
    output_dir: str | None = Field(
        default=None, description="folder for the results; null: <checkpoint>_search, of the first"
    )
    resume: bool = Field(default=False, description="go on with the search in that folder; else it is replaced")
    as_json: bool = Field(default=False, alias="json", description="print JSON instead of a table")

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value):
        return value if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _keys_fit_together(self):
        if self.start == "fixed" and self.breadth > 1:
            raise ValueError(
                f"breadth={self.breadth} starts are all the same with start=fixed; add start=random or noise"
            )
        if self.start != "noise" and self.sigma is not None:
            raise ValueError("sigma is that of start=noise; add it, or leave sigma out")
        return self

    @property
    def folder(self) -> Path:
        if self.output_dir:
            return Path(self.output_dir)
        first = beside(find_checkpoint(self.checkpoint[0]))
        return first.with_name(f"{first.name}_search")


@dataclass
class Search:
    """Models, puzzles, and how they are searched."""

    heads: list[ACTLossHead]
    depths: list[int]  # segments at most, of each model
    dataset: PuzzleDataset  # its batches are the chunks that are searched together
    kind: Kind
    plan: Plan
    rule: str
    patience: int | None
    rows: int  # trajectories in a forward pass
    groups: list[Trajectories]  # of each model

    @property
    def trajectories(self) -> int:
        """K"""
        return len(self.heads) * self.plan.trajectories

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray | None:
        """Puzzles (n, cells) and answers (n, any, cells) -> which obey the rules; None: the kind has none."""
        return self.kind.valid(inputs[:, None], answers) if self.kind.has_rules else None


def think(
    search: Search, inputs: np.ndarray, identifiers: np.ndarray, examples: np.ndarray
) -> tuple[Candidates, np.ndarray]:
    """Run the trajectories of n puzzles (n, cells), numbers `examples` in the split.

    With `patience` they all advance in lockstep, so that a puzzle that has settled leaves with all of them. Without it
    as many as fit a forward pass go from their start to their end, then the next: memory does not grow with breadth.
    -> what they found, and after how many segments each puzzle was left (n,).
    """
    n, width = len(inputs), search.plan.trajectories
    found = Candidates.empty(n, search.trajectories, inputs.shape[1])
    if search.patience is not None:
        return found, _in_lockstep(search, found, inputs, identifiers, examples)
    at_once = max(1, search.rows // n)
    for model, (group, depth) in enumerate(zip(search.groups, search.depths, strict=True)):
        for start in range(0, width, at_once):
            part = range(start, min(start + at_once, width))
            group.begin(inputs, identifiers, examples, part)
            mine = slice(model * width + part.start, model * width + part.stop)
            for number in range(1, depth + 1):
                found.add(np.arange(n), mine, number, group.advance())
    return found, np.full(n, max(search.depths))


def _in_lockstep(
    search: Search, found: Candidates, inputs: np.ndarray, identifiers: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Fill `found`, and leave puzzles that have settled; -> after how many segments each was left (n,)."""
    n, width = len(inputs), search.plan.trajectories
    segments, live = np.zeros(n, np.int64), np.arange(n)
    before, unchanged = None, np.zeros(n, np.int64)
    for group in search.groups:
        group.begin(inputs, identifiers, examples)
    for number in range(1, max(search.depths) + 1):
        for model, (group, depth) in enumerate(zip(search.groups, search.depths, strict=True)):
            if number <= depth:
                found.add(live, slice(model * width, (model + 1) * width), number, group.advance())
        segments[live] = number
        so_far = found.of(live)
        now = choice_of(search, inputs[live], so_far)
        unchanged = settled(search.rule, so_far, now, before, unchanged)
        stay = unchanged < search.patience
        if not stay.any():
            break
        before, unchanged = Choice(now.trajectory[stay], now.answers[stay], now.score[stay]), unchanged[stay]
        if not stay.all():
            live = live[stay]
            for group in search.groups:
                group.keep(stay)
    return segments


def comparable(search: Search, inputs: np.ndarray, found: Candidates) -> Candidates:
    """The same, in which answers that differ only in cells that do not count are equal."""
    answers, at_halt = (search.kind.counted(inputs[:, None], a) for a in (found.answers, found.halt_answers))
    return replace(found, answers=answers, halt_answers=at_halt)


def choice_of(search: Search, inputs: np.ndarray, found: Candidates) -> Choice:
    """What the rule that was asked for chooses."""
    found = comparable(search, inputs, found)
    valid = search.valid(inputs, found.answers) if search.rule == "majority_valid" else None
    return choose(search.rule, found, valid)


def choices_of(search: Search, inputs: np.ndarray, found: Candidates) -> tuple[dict[str, Choice], np.ndarray | None]:
    """What every rule chooses, and which of the last answers are valid, (n, K)."""
    found = comparable(search, inputs, found)
    valid = search.valid(inputs, found.answers)
    return {rule: choose(rule, found, valid) for rule in RULES}, valid


def record(
    search: Search,
    inputs: np.ndarray,
    examples: np.ndarray,
    found: Candidates,
    segments: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """Choose by every rule, and only then compare with the labels (n, cells); -> a `row_type` for each puzzle.

    An answer is right if all labelled cells are, as in evaluate.py, also those that the rules pass over.
    """
    choices, valid = choices_of(search, inputs, found)
    rows = np.zeros(len(inputs), row_type(tuple(RULES), len(search.heads)))
    rows["example"], rows["segments"] = examples, segments
    rows["any_last_right"] = exactly_right(found.answers, labels[:, None]).any(axis=1)
    at_halt = exactly_right(found.halt_answers, labels[:, None]) & (found.halt_segment > 0)
    rows["any_right"] = rows["any_last_right"] | at_halt.any(axis=1)
    rows["valid_answers"] = 0 if valid is None else valid.sum(axis=1)
    rows["no_answer"] = (~found.has_answer).reshape(len(inputs), len(search.heads), -1).sum(axis=2)
    taken = np.stack([answers_of(rule, found, choice.trajectory) for rule, choice in choices.items()], axis=1)
    compared = np.stack([choice.answers for choice in choices.values()], axis=1)
    right, obeys = exactly_right(taken, labels[:, None]), search.valid(inputs, compared)
    for column, (rule, choice) in enumerate(choices.items()):
        mine = rows["rules"][rule]
        mine["trajectory"], mine["score"], mine["right"] = choice.trajectory, choice.score, right[:, column]
        mine["valid"] = False if obeys is None else obeys[:, column]
    return rows


def run_search(config: SearchConfig, ranks: Ranks, device: torch.device) -> dict[str, Any] | None:
    """Search a split; -> the report, as json=true prints it, on rank 0."""
    if config.start == "noise" and config.breadth == 1:
        log.warning("of each view the first start is without noise, and breadth=1: nothing is drawn; raise breadth")
    checkpoints, runs = zip(*(open_run(name, config.data_path) for name in config.checkpoint), strict=True)
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise UserError("a checkpoint is named twice, and would have two votes; name each once")
    search = open_search(config, checkpoints, runs, device)
    about: dict[str, Any] = {}
    with ExitStack() as stack:

        def open_folder() -> None:
            about.update(settings(checkpoints, search))
            stack.enter_context(searching(config.folder))
            prepare(config.folder, about | {"ranks": ranks.world_size}, config.resume)

        ranks.from_main(open_folder)
        search_puzzles(search, config.folder, ranks)
        ranks.barrier()
        if not ranks.is_main:
            return None
        flops, note = segment_flops(runs, search)
        found, curves = summary(search, config.folder, flops)
        warn_of_no_numbers(checkpoints, found["no_answer"])
        report = about | found | ({"flops_note": note} if note else {})
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        write_atomically(config.folder / REPORT, lambda file: file.write(text.encode()))
        figure = draw_risk_coverage(report, curves)
        write_atomically(config.folder / CURVES, lambda file: figure.savefig(file, format="png", dpi=DPI))
        return report


def open_search(
    config: SearchConfig, checkpoints: Sequence[Path], runs: Sequence[PretrainConfig], device: torch.device
) -> Search:
    """Open the split and load the models."""
    alone = Ranks(0, 1, 0)  # every rank opens all chunks and takes its own
    data_path = config.data_path or common_dataset(runs)
    dataset = open_split(runs[0], config.split, alone, data_path=data_path, max_examples=config.max_examples)
    kind = dataset.kind
    sigma = (config.sigma or SIGMA) if config.start == "noise" else 0.0
    plan = Plan(kind.symmetries(config.views, config.seed), config.breadth, config.start, sigma, config.seed)
    rule = config.choose or ("majority_valid" if kind.has_rules else "majority")
    rows = config.global_batch_size or runs[0].global_batch_size
    pairs = zip(checkpoints, runs, strict=True)
    heads = [load_model(path, run, dataset.metadata, batch_size=rows, device=device) for path, run in pairs]
    everything = dataset.num_examples() * plan.trajectories
    if config.global_batch_size is None and device.type == "cuda":
        rows = rows_at_a_time(max(head.model.inner.positions for head in heads), rows, everything)
    chunk = min(max(1, rows // plan.trajectories), dataset.num_examples())
    rows = min(rows, chunk * plan.trajectories)
    dataset.set_batch_size(chunk)
    together = rows if config.patience is None else chunk * plan.trajectories
    states = 2 * together * sum(state_bytes(head.model.inner) for head in heads)
    what = f"the states of {together} trajectories of {len(heads)} models"
    remedy = "lower global_batch_size" if config.patience is None else "lower breadth or views, or drop patience"
    check_available(states, what, device, remedy)
    depths = [config.depth or run.arch.halt_max_steps for run in runs]
    groups = []
    for number, (head, depth) in enumerate(zip(heads, depths, strict=True)):
        work = EVALUATION * depth * everything / rows
        shrinks = config.patience is not None
        compiled = compile_blocks(head.model, "off" if shrinks else "auto", device, work, rows)
        groups.append(Trajectories(head.model, number, plan, rows, one_shape=compiled))
    return Search(heads, depths, dataset, kind, plan, rule, config.patience, rows, groups)


def common_dataset(runs: Sequence[PretrainConfig]) -> str:
    paths = sorted({run.data_path for run in runs})
    if len(paths) > 1:
        raise UserError(f"the checkpoints are of different datasets ({', '.join(paths)}); name one with data_path=…")
    return paths[0]


def settings(checkpoints: Sequence[Path], search: Search) -> dict[str, Any]:
    """What determines the results."""
    data, plan = search.dataset.config, search.plan
    return {
        "checkpoints": [str(path) for path in checkpoints],
        "sha256": [file_digest(path).sha256 for path in checkpoints],
        "dataset": f"{data.dataset_path}/{search.dataset.split}",
        "data": content_digest(Path(data.dataset_path) / search.dataset.split),
        "kind": search.kind.name,
        "has_rules": search.kind.has_rules,
        "puzzles": search.dataset.num_examples(),
        "depth": search.depths,
        "breadth": plan.breadth,
        "start": plan.start,
        "sigma": plan.sigma if plan.start == "noise" else None,
        "views": len(plan.views),
        "choose": search.rule,
        "patience": search.patience,
        "rows": search.rows,
        "seed": plan.seed,
        "device": next(search.heads[0].parameters()).device.type,
    }


def search_puzzles(search: Search, folder: Path, ranks: Ranks) -> None:
    """Search the chunks that are this rank's, and append their records."""
    chunks = progress_bar(
        search.dataset.test_batches(),
        total=search.dataset.num_test_batches(),
        desc="search",
        unit="chunk",
        enabled=ranks.is_main,
        leave=False,
    )
    dtype = row_type(tuple(RULES), len(search.heads))
    with Rows(folder / f"rows.{ranks.rank}.bin", dtype) as rows:
        for number, (_, batch, examples) in enumerate(chunks):
            if number % ranks.world_size != ranks.rank or rows.has(examples):
                continue
            puzzles = (batch[field][: len(examples)].numpy() for field in ("inputs", "puzzle_identifiers"))
            inputs, identifiers = puzzles
            found, segments = think(search, inputs, identifiers, examples)
            labels = batch["labels"][: len(examples)].numpy()
            rows.append(record(search, inputs, examples, found, segments, labels))
        rows.finish()


def segment_flops(runs: Sequence[PretrainConfig], search: Search) -> tuple[list[float] | None, str | None]:
    """The operations of a segment of one trajectory, of each model; or None, and why."""
    try:
        heads = [run.arch.build_for(search.dataset.metadata, batch_size=1, device=META) for run in runs]
        return [flops_per_step(head, 1, training=False) for head in heads], None
    except Exception as error:  # an older PyTorch, or whatever somebody's architecture raises without values
        return None, f"operations are not counted: {first_line(error)}"


def summary(search: Search, folder: Path, flops: list[float] | None) -> tuple[dict[str, Any], dict[str, Curve]]:
    """-> what the records amount to; of each rule, the share of wrong answers against the share that is answered."""
    dtype, has_rules = row_type(tuple(RULES), len(search.heads)), search.kind.has_rules
    sums = totals(search, folder, dtype)
    puzzles, oracle = sums["puzzles"], sums["any_right"]
    assert puzzles == search.dataset.num_examples(), "every rank has finished"
    answered = search.dataset.answered()
    right, abstaining, curves = {}, {}, {}
    for rule, about in RULES.items():
        score, good = scores_of(folder, dtype, rule, answered)
        at = dict(zip(map(str, COVERAGES), accuracy_at(score, good), strict=True))
        abstaining[rule] = {"score": about.score, "auroc": auroc(score, good), "accuracy_at_coverage": at}
        right[rule], curves[rule] = int(good.sum()), risk_coverage(score, good)
    trajectories, scored = search.plan.trajectories, len(score)
    report = {
        "trajectories": search.trajectories,
        "scored": scored,
        "right": right,
        "valid": dict(zip(RULES, sums["valid"].tolist(), strict=True)) if has_rules else None,
        "oracle_right": oracle,  # looks at the labels: an upper bound
        "oracle_right_at_last": sums["any_last_right"],
        "selection_gap": {rule: (oracle - count) / scored if scored else None for rule, count in right.items()},
        "valid_answers": sums["valid_answers"] / (puzzles * search.trajectories) if has_rules else None,
        "no_answer": sums["no_answer"].tolist(),
        "mean_steps": sums["segments"] / puzzles,
        "flops_per_puzzle": None if flops is None else trajectories * float(sums["of_model"] @ flops) / puzzles,
        "abstention": abstaining,
    }
    return report, curves


def totals(search: Search, folder: Path, dtype: np.dtype) -> dict[str, Any]:
    """Sums over all puzzles: counts, and arrays by model (`no_answer`; `of_model`, its segments) and rule (`valid`)."""
    counts = dict.fromkeys(("puzzles", "any_right", "any_last_right", "valid_answers", "segments"), 0)
    no_answer, of_model = np.zeros((2, len(search.heads)), np.int64)
    valid = np.zeros(len(RULES), np.int64)
    for rows in read_rows(folder, dtype):
        counts = {key: count + int(_column(rows, key).sum()) for key, count in counts.items()}
        no_answer += rows["no_answer"].sum(axis=0, dtype=np.int64)
        of_model += [int(np.minimum(rows["segments"].astype(np.int64), depth).sum()) for depth in search.depths]
        valid += [int(rows["rules"][rule]["valid"].sum()) for rule in RULES]
    return counts | {"no_answer": no_answer, "of_model": of_model, "valid": valid}


def _column(rows: np.ndarray, key: str) -> np.ndarray:
    return np.ones(len(rows), np.int64) if key == "puzzles" else rows[key].astype(np.int64)


def scores_of(folder: Path, dtype: np.dtype, rule: str, answered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every puzzle whose answer is known, as `answered` says by example: (n,) float64 and (n,) bool."""
    parts = []
    for rows in read_rows(folder, dtype):
        mine = rows["rules"][rule][answered[rows["example"]]]
        parts.append((mine["score"].copy(), mine["right"].copy()))
    score, right = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return score, right


def warn_of_no_numbers(checkpoints: Sequence[Path], no_answer: list[int]) -> None:
    for path, times in zip(checkpoints, no_answer, strict=True):
        if times:
            log.warning("%d answers of %s are no numbers (NaN or infinite): they have no vote", times, path)


def table(report: dict[str, Any]) -> str:
    puzzles, scored, chosen, k = (report[key] for key in ("puzzles", "scored", "choose", "trajectories"))
    factors = {"models": len(report["checkpoints"]), "views": report["views"], "starts": report["breadth"]}
    of = "".join(f" × {count} {what}" for what, count in factors.items() if count > 1)
    depth, valid = "/".join(map(str, dict.fromkeys(report["depth"]))), report["valid"]
    lines = [f"{report['dataset']}: {puzzles} puzzles{of}, start={report['start']}, at most {depth} segments"]
    if scored < puzzles:
        lines.append(f"{puzzles - scored} puzzles have no answer and are not scored")
    lines.append(f"{'':<28}{'right':>8}{'':>9}{'valid' if valid else '':>8}{'AUROC':>8}{'surest half':>13}")
    for rule, about in RULES.items():
        right, score = report["right"][rule], report["abstention"][rule]
        obeys = f"{valid[rule] / puzzles:.1%}" if valid else ""
        area = "–" if score["auroc"] is None else f"{score['auroc']:.3f}"
        half = share(score["accuracy_at_coverage"]["0.5"])
        mark = f"   <- choose={chosen}" if rule == chosen else ""
        of_scored = share(right / scored if scored else None)
        lines.append(f"{about.name:<28}{right:>8}{of_scored:>9}{obeys:>8}{area:>8}{half:>13}{mark}")
    oracle = report["oracle_right"]
    of_scored = share(oracle / scored if scored else None)
    lines.append(f"{f'pass@{k}: any answer right':<28}{oracle:>8}{of_scored:>9}   (upper bound: uses the labels)")
    gap = share(report["selection_gap"][chosen])
    lines.append(f"{RULES[chosen].name} is {gap} below that bound (selection gap)")
    flops = report["flops_per_puzzle"]
    cost = report["flops_note"] if flops is None else f"{flops:.3g} operations a puzzle"
    lines.append(f"{report['mean_steps']:.2f} segments of {k} trajectories on average; {cost}")
    if valid:
        lines.append(f"{report['valid_answers']:.1%} of all trajectories' last answers are valid")
    return "\n".join(lines)


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def main() -> None:
    with one_line_errors():
        config = from_cli(SearchConfig, sys.argv[1:], __doc__)
        ranks = Ranks.from_environment()
        device = select_device(config.device, ranks.local_rank)
        start_logging(ranks.is_main, as_json=config.as_json)
        # Watched, else the ranks of a torchrun that is killed go on, and hold the folder
        with training.launcher.watched(), ranks.connected(device):
            names = ranks.from_main(lambda: [str(find_checkpoint(name)) for name in config.checkpoint])
            config = config.model_copy(update={"checkpoint": names})  # a run that goes on may soon mean another
            report = run_search(config, ranks, device)
            if report is not None:
                print(json.dumps(report, indent=1, allow_nan=False) if config.as_json else table(report))
                if not config.as_json:
                    print(f"report: {config.folder}")


if __name__ == "__main__":
    main()
