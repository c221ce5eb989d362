"""Puzzles per second in evaluation: python -m benchmarks.evaluate [options]  # of HRM; --size trm: of TRM

halt=max    training.evaluation against a loop that asks for the whole loss after every step, on CUDA with the model
            compiled as a whole where that works; same metrics, checked
  compiled  the same with compiled blocks, not with --toy; on CUDA as a graph, at the batch size that is chosen there
halt=q      the same baseline, where a puzzle leaves the batch when the model prefers to halt; the ratio of the mean
            numbers of steps is what it can gain, and on a CPU the target

The model is untrained, and has a Q head made for the purpose: a random direction of the state, with a bias that makes
puzzles halt at different steps, after about a third of the maximum on average. The time of a step does not depend on
the weights, but the share of steps that is saved does: a trained model has another.
Cost on 2 cores: a minute, half of it the compiler's.
"""

import argparse
import copy
import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.baseline import as_the_original, plain_evaluation, without_our_kernels
from benchmarks.report import Result, in_turns, positive, publish, timing_parser
from benchmarks.sizes import SIZES, config_of, default_size, forward_dtype, write_dataset
from errors import first_line, one_line_errors
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset
from training.compilation import compile_blocks
from training.data import open_split
from training.distributed import Ranks, select_device
from training.evaluation import choose_batch_size, evaluate_split

log = logging.getLogger(__name__)
ONE = Ranks(0, 1, 0)
MEAN_SHARE = 1 / 3  # of the steps, which the made-up Q head takes
CUDA_TARGET = 1.5  # of halt=max
BATCHES_ON_CUDA = 8  # of the baseline's size: a graph is recorded anew for each split
# How far the metrics may differ: relative, absolute. Shares of puzzles may change by a few puzzles through rounding.
TOLERANCE = {torch.float32: (1e-4, 1e-6)}
HALF_TOLERANCE = (2e-2, 2e-3)
DIFFERS = "differs from the baseline"


@torch.inference_mode()
def make_q_head(head: ACTLossHead, dataset: PuzzleDataset, device: torch.device) -> None:
    """Give the model a Q head whose puzzles halt after MEAN_SHARE of the steps, on average over the first batch."""
    q_head, max_steps = head.model.inner.q_head, head.model.config.halt_max_steps
    direction = torch.randn(q_head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()  # Q values of about 1, so that their loss does not magnify what rounding changes
    q_head.weight.copy_(torch.stack((direction, torch.zeros_like(direction))))
    q_head.bias.zero_()
    batch = first_batch(dataset, device)
    carry, values = head.eval().initial_carry(batch), []
    for _ in range(max_steps):
        carry, outputs = head.model(carry=carry, batch=batch)
        values.append(outputs["q_halt_logits"])
    highest = torch.stack(values).cummax(0).values  # (steps, B): a row halts once this is above a threshold
    thresholds = highest.flatten().sort().values
    mean_steps = torch.stack([1 + (highest[:-1] <= threshold).sum(0).float().mean() for threshold in thresholds])
    q_head.bias[0] = -thresholds[(mean_steps < MEAN_SHARE * max_steps).sum().clamp(max=len(thresholds) - 1)]


def first_batch(dataset: PuzzleDataset, device: torch.device) -> dict[str, torch.Tensor]:
    _, batch, _ = next(iter(dataset))
    return {name: field.to(device) for name, field in batch.items()}


def made_up(
    args: argparse.Namespace, scratch: Path, device: torch.device
) -> tuple[str, ACTLossHead, ACTLossHead, PuzzleDataset]:
    """An untrained model on random tokens, and the same one as the original computes it."""
    name = args.size or default_size(args.toy, device)
    batch = args.batch or SIZES[name].batches[-1]
    examples = 20 if args.toy else BATCHES_ON_CUDA * batch if device.type == "cuda" else batch
    write_dataset(scratch, "test", SIZES[name], groups=examples, puzzles_a_group=1)
    config = config_of(SIZES[name], batch, f"data_path='{scratch}'")
    dataset = open_split(config, "test", ONE)
    torch.manual_seed(0)
    head, plain = (
        one.arch.build_for(SIZES[name].metadata, batch_size=batch, device=device)
        for one in (config, without_our_kernels(config))
    )
    make_q_head(head, dataset, device)
    plain.load_state_dict(head.state_dict())
    return f"{name}, batch {batch}, made Q head", head, as_the_original(plain), dataset


def check_same_metrics(
    plain: dict[str, float], ours: dict[str, float], dtype: torch.dtype, same_padding: bool = True
) -> None:
    """Raises `AssertionError` if the metrics differ by more than rounding; one of them includes padding."""
    relative, absolute = TOLERANCE.get(dtype, HALF_TOLERANCE)
    for key, value in ours.items():
        if (key == "eval/q_halt_loss" and not same_padding) or "halt_q/" in key or key.endswith("/ece"):
            continue
        expected = plain[key.removeprefix("eval/")] / plain["count"]
        close = abs(value - expected) <= relative * abs(expected) + absolute
        assert close, f"{key} is {value}, the baseline has {expected}"


def compiled_as_a_whole(head: ACTLossHead, dataset: PuzzleDataset, device: torch.device) -> Callable:
    """The compiled head, for the baseline on CUDA; the head itself elsewhere, or if the compiler fails."""
    if device.type != "cuda":
        return head
    model, batch = torch.compile(head, dynamic=False), first_batch(dataset, device)
    try:
        with torch.inference_mode():
            model(carry=head.eval().initial_carry(batch), batch=batch, return_keys=[])
    except Exception as error:  # whatever the compiler stack raises
        log.warning("the baseline is not compiled: %s", first_line(error))
        return head
    return model


def compiled_max(head: ACTLossHead, dataset: PuzzleDataset, device: torch.device) -> Callable[[], dict] | None:
    """halt=max as evaluate.py runs it on a long split: -> a function that returns metrics; None without a compiler."""
    head, dataset = copy.deepcopy(head), copy.copy(dataset)
    choose_batch_size(None, dataset, head, ONE, device)
    if not compile_blocks(head.model, "on", device, 1, dataset.local_batch_size):
        return None
    return lambda: evaluate_split(head, dataset, ONE, device, [], cuda_graph="auto")[0]


def run(args: argparse.Namespace, device: torch.device) -> list[Result]:
    with tempfile.TemporaryDirectory() as scratch:
        name, head, plain, dataset = made_up(args, Path(scratch), device)
        step = compiled_as_a_whole(plain, dataset, device)
        ways = {"baseline": lambda: plain_evaluation(plain, step, dataset, device)}
        for halt in ("max", "q"):
            ways[f"halt={halt}"] = lambda halt=halt: evaluate_split(
                head, dataset, ONE, device, [], halt=halt, cuda_graph="off"
            )[0]
        compiled = not args.toy if args.compile is None else args.compile
        if compiled and (call := compiled_max(head, dataset, device)):
            ways["halt=max, compiled" + (", CUDA graph" if device.type == "cuda" else "")] = call
        metrics: dict[str, dict[str, float]] = {}
        calls = {way: lambda way=way, call=call: metrics.update({way: call()}) for way, call in ways.items()}
        times = in_turns(calls, args.repeats, device)
    differences = {}
    for way in (way for way in metrics if way not in ("baseline", "halt=q")):
        try:
            check_same_metrics(metrics["baseline"], metrics[way], forward_dtype(head), same_padding=way == "halt=max")
        except AssertionError as error:
            differences[way] = str(error)
    against = "compiled as a whole" if step is not plain else "eager"
    found = rows(f"{name}, %s, a puzzle, against {against}", metrics, times, dataset.num_examples(), device)
    for way, difference in differences.items():
        found[way].details[DIFFERS] = difference
    return list(found.values())


def refuse_differences(results: list[Result]) -> None:
    """Raise `AssertionError` if a way has other metrics than the baseline: after its times have been shown."""
    for row in results:
        assert DIFFERS not in row.details, f"{row.what}: {row.details[DIFFERS]}"


def rows(
    label: str, metrics: dict[str, dict], times: dict[str, list[float]], examples: int, device: torch.device
) -> dict[str, Result]:
    each = {way: [seconds / examples for seconds in values] for way, values in times.items()}
    results = {}
    for way in (way for way in each if way != "baseline"):
        details = {"mean steps": metrics[way]["eval/steps"], "exact accuracy": metrics[way]["eval/exact_accuracy"]}
        details["puzzles/s"] = 1 / statistics.median(each[way])
        results[way] = Result("evaluate", label % way, each["baseline"], each[way], None, details)
    if device.type == "cuda":
        best = min((way for way in results if way != "halt=q"), key=lambda way: statistics.median(each[way]))
        results[best].target = CUDA_TARGET
    else:
        results["halt=q"].target = metrics["halt=max"]["eval/steps"] / metrics["halt=q"]["eval/steps"]
    return results


def options(doc: str = __doc__) -> argparse.ArgumentParser:
    args = timing_parser(doc, repeats=3)
    args.add_argument("--size", choices=SIZES, help="default: sudoku on CUDA, else small")
    args.add_argument("--batch", type=positive, help="global batch size")
    yes_or_no = argparse.BooleanOptionalAction
    args.add_argument("--compile", action=yes_or_no, help="also halt=max with compiled blocks (default: unless --toy)")
    return args


def main() -> None:
    args = options().parse_args()
    with one_line_errors():
        device = select_device(args.device)
        results = run(args, device)
        publish(results, device, args.json)
        refuse_differences(results)


if __name__ == "__main__":
    main()
