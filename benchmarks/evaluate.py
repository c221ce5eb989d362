"""Puzzles a second in evaluation: python -m benchmarks.evaluate [--checkpoint <run>/step_<n>] [options]

halt=max    training.evaluation against a loop that asks for the whole loss after every step; same metrics, checked
halt=q      the same baseline, where a puzzle leaves the batch when the model prefers to halt; the ratio of the mean
            numbers of steps is what it can gain

Without --checkpoint the model is untrained, and has a Q head made for the purpose: a random direction of the state,
with a bias for which puzzles halt at different steps, about a third of the maximum on average. The time of a step does
not depend on what the weights say; its share of steps saved is not that of a trained model.
Cost on 2 cores: half a minute.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.baseline import plain_evaluation
from benchmarks.report import Result, in_turns, parser, positive, publish
from benchmarks.sizes import SIZES, build_head, write_dataset
from errors import one_line_errors
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig
from training.config import load_config
from training.data import open_split
from training.distributed import Ranks, select_device
from training.evaluation import evaluate_split
from training.weights import load_model

ONE = Ranks(0, 1, 0)
MEAN_SHARE = 1 / 3  # of the steps that the made Q head takes


@torch.inference_mode()
def make_q_head(head: ACTLossHead, dataset: PuzzleDataset, device: torch.device) -> None:
    """Give the model a Q head whose puzzles halt after MEAN_SHARE of the steps, on average over the first batch."""
    inner, max_steps = head.model.inner, head.model.config.halt_max_steps
    direction = torch.randn(inner.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(device)
    _, batch, _ = next(iter(dataset))
    batch = {name: field.to(device) for name, field in batch.items()}
    carry, projected = head.eval().initial_carry(batch), []
    for _ in range(max_steps):
        carry, _ = head.model(carry=carry, batch=batch)
        projected.append(carry.inner_carry.z_H[:, 0].float() @ direction)
    best_so_far = torch.stack(projected).cummax(0).values  # (steps, B): halted at a step where it is above a threshold
    thresholds = best_so_far.flatten().sort().values
    low, high = 0, len(thresholds) - 1
    while low < high:  # the higher the threshold, the more steps
        middle = (low + high) // 2
        steps = 1 + (best_so_far[:-1] <= thresholds[middle]).sum(0)
        low, high = (middle + 1, high) if steps.float().mean() < MEAN_SHARE * max_steps else (low, middle)
    inner.q_head.weight.copy_(torch.stack((direction, torch.zeros_like(direction))))
    inner.q_head.bias.copy_(torch.tensor([-float(thresholds[low]), 0.0]))


def made_up(args: argparse.Namespace, scratch: Path, device: torch.device) -> tuple[str, ACTLossHead, PuzzleDataset]:
    """An untrained model on random tokens."""
    name = "toy" if args.toy else "sudoku" if device.type == "cuda" else "small"
    batch = args.batch or SIZES[name].batches[-1]
    examples = args.examples or (20 if args.toy else 4 * batch if device.type == "cuda" else batch)
    write_dataset(scratch, "test", SIZES[name], groups=examples, puzzles_a_group=1)
    options = dict(seed=0, test_set_mode=True, epochs_per_iter=1, rank=0, num_replicas=1)
    config = PuzzleDatasetConfig(dataset_path=str(scratch), global_batch_size=batch, **options)
    dataset = PuzzleDataset(config, "test")
    torch.manual_seed(0)
    with torch.device(device):
        head = build_head(SIZES[name], batch)
    make_q_head(head, dataset, device)
    return f"{name}, batch {batch}, made Q head", head, dataset


def trained(args: argparse.Namespace, device: torch.device) -> tuple[str, ACTLossHead, PuzzleDataset]:
    run = load_config(str(args.checkpoint.parent / "all_config.yaml"))
    dataset = open_split(
        run, "test", ONE, data_path=args.data_path, global_batch_size=args.batch, max_examples=args.examples
    )
    head = load_model(args.checkpoint, run, dataset.metadata, batch_size=dataset.local_batch_size, device=device)
    name = f"{args.checkpoint.parent.name}/{args.checkpoint.name}, batch {dataset.local_batch_size}"
    return name, head, dataset


def check_same_metrics(plain: dict[str, float], ours: dict[str, float]) -> None:
    """Raises `AssertionError` where the metrics, all but one that counts padding, differ by more than rounding."""
    for key, value in ours.items():
        expected = plain[key.removeprefix("eval/")] / plain["count"]
        assert abs(value - expected) <= 1e-4 * abs(expected) + 1e-6, f"{key} is {value}, the baseline has {expected}"


def run(args: argparse.Namespace, device: torch.device) -> list[Result]:
    with tempfile.TemporaryDirectory() as scratch:
        name, head, dataset = trained(args, device) if args.checkpoint else made_up(args, Path(scratch), device)
        metrics: dict[str, dict[str, float]] = {}

        def ours(halt: str) -> None:
            metrics[halt], _ = evaluate_split(head, dataset, ONE, device, [], halt=halt)

        def plain() -> None:
            metrics["baseline"] = plain_evaluation(head, dataset, device)

        ways = {"baseline": plain, "max": lambda: ours("max"), "q": lambda: ours("q")}
        times = in_turns(ways, args.repeats, device, desc=None)  # evaluation has a bar of its own
        check_same_metrics(metrics["baseline"], metrics["max"])
        examples = dataset.num_examples()
        each = {way: [seconds / examples for seconds in values] for way, values in times.items()}
        steps = {halt: metrics[halt]["eval/steps"] for halt in ("max", "q")}
        results = []
        for halt in steps:
            details = {"mean steps": steps[halt], "exact accuracy": metrics[halt]["eval/exact_accuracy"]}
            row = Result("evaluate", f"{name}, halt={halt}, a puzzle", each["baseline"], each[halt], None, details)
            row.details["puzzles/s"] = 1 / sorted(row.ours)[len(row.ours) // 2]
            results.append(row)
        results[-1].target = steps["max"] / steps["q"]
    return results


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = parser(doc)
    args.add_argument("--checkpoint", type=Path, help="<run>/step_<n>, beside its all_config.yaml")
    args.add_argument("--data-path", help="another dataset than the run's")
    args.add_argument("--examples", type=positive, help="at most so many puzzles")
    args.add_argument("--batch", type=positive, help="global batch size")
    args.set_defaults(repeats=3)
    return args


def main() -> None:
    args = options().parse_args()
    with one_line_errors():
        device = select_device(args.device)
        publish(run(args, device), device, args.json)


if __name__ == "__main__":
    main()
