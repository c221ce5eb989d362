"""Parts of benchmarks/agreement.py that compare whole trajectories of training: trace, graph, resume."""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.baseline import PlainTrainer
from benchmarks.build import ROOT
from benchmarks.sizes import SIZES, Size, config_of, metadata_of, random_batches, write_dataset
from benchmarks.ways import OurTrainer
from dataset.format import load_metadata
from errors import UserError
from models.losses import ACTLossHead
from puzzle_dataset import Batch, PuzzleDataset
from training.config import PretrainConfig
from training.cuda_graph import Graph, uses_graph
from training.data import open_split
from training.distributed import Ranks
from training.metrics import progress_bar
from training.reasoning import AllSteps
from training.step import train_step

ONE = Ranks(0, 1, 0)
LOSSES = ("lm_loss", "q_halt_loss", "q_continue_loss")
# Relative difference of a loss that kernels explain whose additions have no fixed order; a CPU's have one.
NOISE = {"float32": 1e-4, "bfloat16": 2e-2}


class Traced(NamedTuple):
    kind: type
    dtype: str
    compiled: bool = False
    graph: bool = False


def trace(args: argparse.Namespace, device: torch.device) -> None:
    size = SIZES["toy" if args.toy else "sudoku"]
    ways = {
        "float32, baseline": Traced(PlainTrainer, "float32"),
        "float32": Traced(OurTrainer, "float32"),
        "bfloat16": Traced(OurTrainer, "bfloat16"),
    }
    if device.type == "cuda":
        ways["bfloat16, blocks compiled"] = Traced(OurTrainer, "bfloat16", compiled=True)
        ways["bfloat16, blocks compiled, CUDA graph"] = Traced(OurTrainer, "bfloat16", compiled=True, graph=True)
    traces: dict[str, list[float]] = {}
    for name, way in ways.items():
        overrides = [f"arch.forward_dtype={way.dtype}", "lr_warmup_steps=20", f"data_path='{args.data_path}'"]
        overrides.append(f"cuda_graph={'on' if way.graph else 'off'}")
        config = config_of(size, args.batch or size.batches[0], *overrides)
        dataset = open_split(config, "train", ONE, epochs_per_iter=config.epochs)
        torch.manual_seed(0)
        trainer = way.kind(config, dataset.metadata, ONE, device)
        if way.compiled:
            trainer.compile()
        traces[name] = losses_of(name, trainer, dataset, args.steps, device)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trace.json").write_text(json.dumps(traces))
    draw(traces, args.out / "trace.png")
    print(trace_table(traces))


def losses_of(name: str, trainer, dataset: PuzzleDataset, steps: int, device: torch.device) -> list[float]:
    """The token loss of each step."""
    losses: list[float] = []
    batches = itertools.chain.from_iterable(itertools.repeat(dataset))  # pass after pass
    for _ in progress_bar(range(steps), total=steps, desc=name, unit="step", enabled=True, leave=False):
        _, batch, _ = next(batches)
        batch = {key: field.to(device) for key, field in batch.items()}
        losses.append(trainer.step(batch)["train/lm_loss"])
    return losses


def trace_table(traces: dict[str, list[float]]) -> str:
    """Single steps, the mean of the last tenth, and how far each trace is from the float32 baseline there."""
    steps = len(next(iter(traces.values())))
    shown = sorted({1, min(10, steps), max(1, steps // 4), max(1, steps // 2), steps})
    tail = max(1, steps // 10)
    means = {name: statistics.fmean(losses[-tail:]) for name, losses in traces.items()}
    lines = [f"| loss at step | {' | '.join(map(str, shown))} | mean of the last {tail} | from float32 |"]
    lines.append("| --- " * (len(shown) + 3) + "|")
    for name, losses in traces.items():
        cells = [f"{losses[step - 1]:.4f}" for step in shown]
        from_float32 = means[name] / means["float32, baseline"] - 1
        lines.append(f"| {name} | {' | '.join(cells)} | {means[name]:.4f} | {from_float32:+.2%} |")
    if "bfloat16, blocks compiled" in traces:
        eager, compiled = (traces[name] for name in ("bfloat16", "bfloat16, blocks compiled"))
        spread = max(abs(a / b - 1) for a, b in zip(eager, compiled, strict=True))
        apart = abs(means["bfloat16"] / means["bfloat16, blocks compiled"] - 1)
        lines += ["", f"Kernel noise in bfloat16, eager against compiled: the mean of the last {tail} differs by "]
        lines[-1] += f"{apart:.2%}, a single step by at most {spread:.2%}."
    return "\n".join(lines)


def draw(traces: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, losses) in enumerate(traces.items()):
        axes.plot(range(1, len(losses) + 1), losses, label=name, linestyle=("-", "--", ":", "-.")[number % 4])
    axes.set(xlabel="step", ylabel="token loss")
    axes.legend()
    figure.savefig(path, dpi=120)


class Step(NamedTuple):
    sums: dict[str, float]
    halted: list[bool]


def graph(args: argparse.Namespace, device: torch.device) -> None:
    """Raises `AssertionError` where a graph computes something else than the kernels one by one."""
    size = SIZES["toy" if args.toy else "sudoku"]
    graphed = uses_graph("auto", device)
    if not graphed:
        print("There is no CUDA graph here: everything ran kernel by kernel, nothing is shown.\n")
    cases = [("float32", False), ("bfloat16", True)] if device.type == "cuda" else [("float32", False)]
    print(f"| training, {args.steps} steps | {' | '.join(LOSSES)} | count, steps and halted rows |")
    print("| --- " * (len(LOSSES) + 2) + "|")
    heads = {}
    for dtype, compiled in cases:
        config = config_of(
            size, args.batch or size.batches[0], f"arch.forward_dtype={dtype}", "lr_warmup_steps=5",
            "arch.halt_exploration_prob=0.5", "cuda_graph=off",
        )  # fmt: skip
        batches = list(itertools.islice(random_batches(size, config.global_batch_size, device), args.steps))
        plain, heads[dtype] = steps_of(config, size, batches, device, compiled)
        again, _ = steps_of(config, size, batches, device, compiled)
        recorded, _ = steps_of(config.model_copy(update={"cuda_graph": "auto"}), size, batches, device, compiled)
        label = dtype + (", blocks compiled" if compiled else "")
        noisy = compare(f"{label}: twice the same, kernel by kernel", plain, again, NOISE[dtype])
        differs = compare(f"{label}: {'CUDA graph' if graphed else 'the same'}", plain, recorded, NOISE[dtype])
        assert noisy or not differs, f"{label}: the graph differs from the kernels, which agree with themselves"
    print("\n| evaluation, two batches | answers that differ | logits differ by at most |\n| --- | --- | --- |")
    for dtype, head in heads.items():
        evaluation_batches = list(itertools.islice(random_batches(size, len(plain[0].halted), device, seed=1), 2))
        compare_answers(dtype, head, evaluation_batches, Graph("a reasoning step") if graphed else None)


def steps_of(
    config: PretrainConfig, size: Size, batches: list[Batch], device: torch.device, compiled: bool
) -> tuple[list[Step], ACTLossHead]:
    """Training steps of a fresh model, whose rows halt at different steps."""
    torch.manual_seed(0)
    trainer = OurTrainer(config, metadata_of(size), ONE, device)
    q_head = trainer.head.model.inner.q_head
    with torch.no_grad():
        q_head.weight.normal_()
        q_head.bias.zero_()
    if compiled:
        trainer.compile()
    steps = []
    for batch in batches:
        sums, _ = train_step(trainer.state, batch, config)
        steps.append(Step({key: float(value) for key, value in sums.items()}, trainer.state.carry.halted.tolist()))
    assert any(0 < sum(step.halted) < len(step.halted) for step in steps), "all rows halt at once: a poor comparison"
    if trainer.state.graphs is not None:
        assert trainer.replays(batches[0]), "the step could not be recorded"
    return steps, trainer.head


def compare(label: str, plain: list[Step], other: list[Step], allowed: float) -> bool:
    """Print a row; -> whether they differ by more than `allowed` in a loss, or halt differently."""
    off = [max(abs(b.sums[key] / a.sums[key] - 1) for a, b in zip(plain, other, strict=True)) for key in LOSSES]
    same = sum(
        a.halted == b.halted and all(a.sums[key] == b.sums[key] for key in ("count", "steps"))
        for a, b in zip(plain, other, strict=True)
    )
    print(f"| {label} | {' | '.join(f'{value:.1e}' for value in off)} | the same in {same} of {len(plain)} steps |")
    return max(off) > allowed or same < len(plain)


@torch.inference_mode()
def compare_answers(label: str, head: ACTLossHead, batches: list[Batch], recorded: Graph | None) -> None:
    head.eval()
    plain, graphed = AllSteps(head.model), AllSteps(head.model, recorded)
    differ, off = 0, 0.0
    for batch in batches:
        expected = {key: value.clone() for key, value in plain.run(batch).outputs.items()}
        outputs = graphed.run(batch).outputs
        differ += (outputs["logits"].argmax(-1) != expected["logits"].argmax(-1)).any(-1).sum().item()
        off = max(off, *((outputs[key] - expected[key]).abs().max().item() for key in expected))
    print(f"| {label} | {differ} of {sum(len(batch['inputs']) for batch in batches)} puzzles | {off:.1e} |")
    assert not differ, "a graph gives other answers"
    assert recorded is None or recorded.ready(lambda: None), "the reasoning step could not be recorded"


def resume(args: argparse.Namespace, device: torch.device) -> None:
    """Raises `AssertionError` where a resumed run is not the run that went on; on a CPU to the byte."""
    dtypes = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
    print("| dtype | steps, resumed after | metrics.jsonl | largest difference of a loss | of any metric |")
    print("| --- " * 5 + "|")
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as scratch:
            whole, resumed = run_and_resume(args, device, dtype, Path(scratch))
        compare_runs(dtype, whole, resumed, args.steps, 0.0 if device.type == "cpu" else NOISE[dtype])


def compare_runs(dtype: str, whole: bytes, resumed: bytes, steps: int, allowed: float) -> None:
    """Print a row, of two metrics.jsonl. Without an allowed difference they must be equal to the byte."""
    first, second = ([json.loads(line) for line in text.splitlines()] for text in (whole, resumed))
    assert [line.keys() for line in first] == [line.keys() for line in second], "other lines were logged"
    losses, all_metrics = 0.0, 0.0
    for a, b in zip(first, second, strict=True):
        for key in a:
            apart = abs(a[key] - b[key]) / max(abs(a[key]), 1e-6)
            all_metrics = max(all_metrics, apart)
            losses = max(losses, apart if key.endswith("loss") else 0.0)
    last = first[-1]["step"]
    equal = "equal to the byte" if whole == resumed else "not equal to the byte"
    print(f"| {dtype} | {last}, {steps // 2} | {equal} | {losses:.1e} | {all_metrics:.1e} |")
    assert last >= steps, "the run was too short"
    assert allowed or whole == resumed, "a resumed run differs from the whole one"
    assert losses <= allowed, f"the losses of a resumed run differ by more than {allowed}"


def run_and_resume(args: argparse.Namespace, device: torch.device, dtype: str, scratch: Path) -> tuple[bytes, bytes]:
    """-> metrics.jsonl of a run, and of one that goes on from its middle."""
    size = SIZES["toy" if args.toy else "sudoku"]
    batch, half = args.batch or size.batches[0], args.steps // 2
    train = Path(args.data_path).resolve() / "train"
    metadata = load_metadata(train)
    epochs = -(-args.steps * batch // int(metadata.total_groups * metadata.mean_puzzle_examples))
    if epochs == 1 and metadata.total_groups > 2 * args.steps * batch:
        raise UserError(f"{args.data_path} has too many puzzles for {args.steps} steps; give a higher --steps")
    data = scratch / "data"
    data.mkdir()
    write_dataset(data, "test", SIZES["sudoku"], groups=2 * batch, puzzles_a_group=1)  # a whole one takes minutes
    (data / "train").symlink_to(train)

    def pretrain(name: str, *more: str) -> bytes:
        command = [
            "pretrain.py", f"+experiment={size.experiment}", f"data_path='{data}'",
            f"checkpoint_path='{scratch / name}'", f"global_batch_size={batch}", f"epochs={epochs}",
            "eval_interval=null", "lr_warmup_steps=5", f"arch.forward_dtype={dtype}", f"device={device.type}",
            f"checkpoint_interval={half}", "keep_last=9", *size.overrides, *more,
        ]  # fmt: skip
        environment = os.environ | {"WANDB_MODE": "disabled"}
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
        return (scratch / name / "metrics.jsonl").read_bytes()

    return pretrain("whole"), pretrain("resumed", f"resume='{scratch / 'whole' / f'state_{half}'}'")
