"""Whether the fast ways of computing agree with the plain ones: python -m benchmarks.agreement PART [options]

trace       losses of --steps training steps (200): float32 and bfloat16, ours and the baseline, from the same weights
            on the same Sudokus (--data-path); writes trace.json and trace.png
graph       the same steps (40) with and without a CUDA graph, of a model whose rows halt at different steps, with
            exploration: losses, halting; and two evaluation batches
resume      pretrain.py for 40 steps on --data-path, and again from its state after 20: metrics.jsonl line by line
attention   outputs, gradients and time of each attention kernel that runs here, against float64
compile     losses of the first steps: eager, blocks compiled, the baseline compiled as a whole (not with --toy)
nccl        gradients through a process group of one rank: DistributedDataParallel's sums, as training has them, and one
            call per parameter, which must be equal; both are timed

Each part prints a table; graph, resume and nccl fail if what must agree does not, the others only show it. --out is a
folder for files. Runs on a CPU too (without a graph, and with gloo for NCCL). `--toy`: a model for a test. In float32,
TF32 is off.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.baseline import PlainTrainer
from benchmarks.loader import our_loader
from benchmarks.report import in_turns, milliseconds, parser, positive
from benchmarks.sizes import ROOT, SIZES, Size, config_of, random_batches, write_dataset
from benchmarks.step import CHECKED_STEPS, WAYS, Kind, OurTrainer, build_ways, compared_steps, largest_difference
from dataset.format import load_metadata
from errors import UserError, one_line_errors
from models.layers import ATTENTION_KERNELS, select_attention
from models.losses import ACTLossHead
from puzzle_dataset import Batch
from training.config import PretrainConfig
from training.cuda_graph import Graph, uses_graph
from training.data import open_split
from training.distributed import Ranks, select_device
from training.reasoning import Reasoner
from training.step import train_step

ONE = Ranks(0, 1, 0)
LOSSES = ("lm_loss", "q_halt_loss", "q_continue_loss")
# Relative difference of a loss that is due to kernels whose additions have no fixed order; on a CPU the order is fixed.
NOISE = {"float32": 1e-4, "bfloat16": 2e-2}


def table_head(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")


def size_of(args: argparse.Namespace) -> tuple[Size, int]:
    """-> the size, and its global batch."""
    size = SIZES["toy" if args.toy else "sudoku"]
    return size, args.batch or size.batches[0]


def trace(args: argparse.Namespace, device: torch.device) -> None:
    ways = {
        "float32, baseline": Kind(PlainTrainer),
        "float32": Kind(OurTrainer),
        "bfloat16": Kind(OurTrainer),
        "bfloat16, blocks compiled": Kind(OurTrainer, compilations=1),
        "bfloat16, blocks compiled, CUDA graph": Kind(OurTrainer, compilations=1, graph=True),
    }
    losses: dict[str, list[float]] = {}
    for name, kind in ways.items():
        if kind.compilations and device.type != "cuda":
            continue
        overrides = [f"arch.forward_dtype={name.split(',')[0]}", "lr_warmup_steps=20", f"data_path='{args.data_path}'"]
        config = config_of(*size_of(args), *overrides, f"cuda_graph={'on' if kind.graph else 'off'}")
        dataset = open_split(config, "train", ONE, epochs_per_iter=config.epochs)
        torch.manual_seed(0)
        trainer = kind.trainer(config, dataset.metadata, ONE, device)
        if kind.compilations:
            trainer.compile()
        batches = itertools.islice(our_loader(dataset, 1 if device.type == "cuda" else 0, device), args.steps)
        losses[name] = [trainer.step(batch)["train/lm_loss"] for batch in batches]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trace.json").write_text(json.dumps(losses))
    draw(losses, args.out / "trace.png")
    print_traces(losses)


def print_traces(traces: dict[str, list[float]]) -> None:
    """Print single steps, the mean of the last tenth, and how far each trace is from the float32 baseline there."""
    steps = len(next(iter(traces.values())))
    shown = sorted({1, min(10, steps), max(1, steps // 4), max(1, steps // 2), steps})
    tail = max(1, steps // 10)
    means = {name: statistics.fmean(losses[-tail:]) for name, losses in traces.items()}
    table_head("loss at step", *map(str, shown), f"mean of the last {tail}", "from float32")
    for name, losses in traces.items():
        cells = [f"{losses[step - 1]:.4f}" for step in shown]
        from_float32 = means[name] / means["float32, baseline"] - 1
        print(f"| {name} | {' | '.join(cells)} | {means[name]:.4f} | {from_float32:+.2%} |")
    if compiled := traces.get("bfloat16, blocks compiled"):
        spread = max(abs(a / b - 1) for a, b in zip(traces["bfloat16"], compiled, strict=True))
        apart = abs(means["bfloat16"] / means["bfloat16, blocks compiled"] - 1)
        print(
            f"\nKernel noise in bfloat16, eager against compiled: the mean of the last {tail} differs by {apart:.2%}, "
        )
        print(f"a single step by at most {spread:.2%}.")


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
    """Raises `AssertionError` if a graph computes something else than the kernels one by one."""
    size, rows = size_of(args)
    graphed = uses_graph("auto", device)
    if not graphed:
        print("There is no CUDA graph here: everything ran kernel by kernel, nothing is shown.\n")
    cases = [("float32", False), ("bfloat16", True)] if device.type == "cuda" else [("float32", False)]
    table_head(f"training, {args.steps} steps", *LOSSES, "count, steps and halted rows")
    heads = {}
    for dtype, compiled in cases:
        overrides = ["lr_warmup_steps=5", "arch.halt_exploration_prob=0.5", "cuda_graph=off"]
        config = config_of(size, rows, f"arch.forward_dtype={dtype}", *overrides)
        batches = list(itertools.islice(random_batches(size, rows, device), args.steps))
        # PyTorch's own attention for float32 may add up gradients in any order: then no run equals another.
        with sdpa_kernel(SDPBackend.MATH) if dtype == "float32" else nullcontext():
            plain, heads[dtype] = steps_of(config, size, batches, device, compiled)
            again, _ = steps_of(config, size, batches, device, compiled)
            recorded, _ = steps_of(config.model_copy(update={"cuda_graph": "auto"}), size, batches, device, compiled)
        label = dtype + (", blocks compiled" if compiled else "")
        noisy = compare(f"{label}: twice the same, kernel by kernel", plain, again, NOISE[dtype])
        differs = compare(f"{label}: {'CUDA graph' if graphed else 'the same'}", plain, recorded, NOISE[dtype])
        assert noisy or not differs, f"{label}: the graph differs from the kernels, which agree with themselves"
    print()
    table_head("evaluation, two batches", "answers that differ", "logits differ by at most")
    for dtype, head in heads.items():
        batches = list(itertools.islice(random_batches(size, rows, device, seed=1), 2))
        compare_answers(dtype, head, batches, Graph("a reasoning step") if graphed else None)


def steps_of(
    config: PretrainConfig, size: Size, batches: list[Batch], device: torch.device, compiled: bool
) -> tuple[list[Step], ACTLossHead]:
    """Take training steps of a fresh model, whose rows halt at different steps."""
    torch.manual_seed(0)
    trainer = OurTrainer(config, size.metadata, ONE, device)
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


def relative_difference(expected: float, found: float) -> float:
    """Of a loss; below 1e-6, where that of a confident and right Q(halt) can be 0 in float32, relative to that."""
    return abs(found - expected) / max(abs(expected), 1e-6)


def compare(label: str, plain: list[Step], other: list[Step], allowed: float) -> bool:
    """Print a row; -> whether the runs differ by more than `allowed` in a loss, or halt differently."""
    pairs = list(zip(plain, other, strict=True))
    off = [max(relative_difference(a.sums[key], b.sums[key]) for a, b in pairs) for key in LOSSES]
    same = sum(a.halted == b.halted and all(a.sums[key] == b.sums[key] for key in ("count", "steps")) for a, b in pairs)
    print(f"| {label} | {' | '.join(f'{value:.1e}' for value in off)} | the same in {same} of {len(plain)} steps |")
    return max(off) > allowed or same < len(plain)


def compare_answers(label: str, head: ACTLossHead, batches: list[Batch], recorded: Graph | None) -> None:
    plain, graphed = Reasoner(head.model), Reasoner(head.model, graph=recorded)
    differ, off = 0, 0.0
    for batch in batches:
        expected, outputs = (reasoner.run(batch, len(batch["inputs"])).outputs for reasoner in (plain, graphed))
        differ += (outputs["logits"].argmax(-1) != expected["logits"].argmax(-1)).any(-1).sum().item()
        off = max(off, *((outputs[key] - expected[key]).abs().max().item() for key in expected))
    print(f"| {label} | {differ} of {sum(len(batch['inputs']) for batch in batches)} puzzles | {off:.1e} |")
    assert not differ, "a graph gives other answers"
    assert recorded is None or recorded.ready(lambda: None), "the reasoning step could not be recorded"


def resume(args: argparse.Namespace, device: torch.device) -> None:
    """Raises `AssertionError` if a resumed run differs from one that went on; on a CPU, byte for byte."""
    table_head("dtype", "steps, resumed after", "metrics.jsonl", "largest difference of a loss", "of any metric")
    for dtype in ("float32", "bfloat16") if device.type == "cuda" else ("float32",):
        with tempfile.TemporaryDirectory() as scratch:
            whole, resumed = run_and_resume(args, device, dtype, Path(scratch))
        compare_runs(dtype, whole, resumed, args.steps, 0.0 if device.type == "cpu" else NOISE[dtype])


def compare_runs(dtype: str, whole: bytes, resumed: bytes, steps: int, allowed: float) -> None:
    """Print a row that compares two metrics.jsonl. With no allowed difference they must be equal byte for byte."""
    first, second = ([json.loads(line) for line in text.splitlines()] for text in (whole, resumed))
    assert [line.keys() for line in first] == [line.keys() for line in second], "other lines were logged"
    apart = [(relative_difference(a[key], b[key]), key) for a, b in zip(first, second, strict=True) for key in a]
    losses, last = max(value for value, key in apart if key.endswith("loss")), first[-1]["step"]
    equal = "equal to the byte" if whole == resumed else "not equal to the byte"
    print(f"| {dtype} | {last}, {steps // 2} | {equal} | {losses:.1e} | {max(apart)[0]:.1e} |")
    assert last >= steps, "the run was too short"
    assert allowed or whole == resumed, "a resumed run differs from the whole one"
    assert losses <= allowed, f"the losses of a resumed run differ by more than {allowed}"


def run_and_resume(args: argparse.Namespace, device: torch.device, dtype: str, scratch: Path) -> tuple[bytes, bytes]:
    """-> metrics.jsonl of a run, and of one that goes on from its middle."""
    size, batch = size_of(args)
    train, data, half = Path(args.data_path).resolve() / "train", scratch / "data", args.steps // 2
    metadata = load_metadata(train)
    epochs = -(-args.steps * batch // int(metadata.total_groups * metadata.mean_puzzle_examples))
    if epochs == 1 and metadata.total_groups > 2 * args.steps * batch:
        raise UserError(f"{args.data_path} has too many puzzles for {args.steps} steps; give a higher --steps")
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


def attention(args: argparse.Namespace, device: torch.device) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = [(2, 17, 2, 16)] if args.toy else [(96, 82, 8, 64), (768, 82, 8, 64), (96, 901, 8, 64)]
    calls = kernels(device, dtype)
    table_head("shape (B, S, heads, dim)", "kernel", "output off by", "gradients off by", "forward + backward")
    for shape in shapes:
        generator = torch.Generator(device).manual_seed(0)
        inputs = [torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(4)]
        few = [tensor[:4] for tensor in inputs]  # float64 takes much memory
        exact = with_gradients(select_attention("sdpa", device.type, torch.float64), [t.double() for t in few])
        for name, call in calls.items():
            try:
                result = with_gradients(call, few)
                time = in_turns({"": lambda call=call, inputs=inputs: with_gradients(call, inputs)}, 10, device)[""]
            except RuntimeError as error:
                print(f"| {shape} | {name} | {str(error).splitlines()[0][:60]} | | |")
                continue
            off = [float((got.double() - want).abs().max()) for got, want in zip(result, exact, strict=True)]
            print(f"| {shape} | {name} | {off[0]:.1e} | {max(off[1:]):.1e} | {milliseconds(time)} |")


def kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Callable]:
    """PyTorch's backends one by one, the kernel that `auto` takes, and FlashAttention if it is installed."""

    def backend(which: SDPBackend) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(which):
                q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return call

    names = ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")  # cuDNN from PyTorch 2.5 on
    members = {name: SDPBackend.__members__.get(name) for name in names}
    calls = {f"sdpa {name.lower()}": backend(member) for name, member in members.items() if member is not None}
    for name in reversed(ATTENTION_KERNELS):
        try:
            calls[f"arch.attention={name}"] = select_attention(name, device.type, dtype)
        except UserError as error:
            print(f"(left out: {error})\n")
    return calls


def with_gradients(call: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """-> the output for q, k, v, and their gradients if the fourth input is that of the output."""
    q, k, v = (tensor.detach().requires_grad_() for tensor in inputs[:3])
    out = call(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])]


def compilation(args: argparse.Namespace, device: torch.device) -> None:
    size, rows = size_of(args)
    batches = list(itertools.islice(random_batches(size, rows, device), CHECKED_STEPS))
    whole = not args.toy  # takes the compiler minutes on a CPU
    table_head("dtype", "way", "first step cold, warm", "largest difference of a loss from the eager baseline")
    for dtype in ("float32", "bfloat16") if device.type == "cuda" else ("float32",):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            config = config_of(size, rows, f"arch.forward_dtype={dtype}")
            ways = build_ways(config, size, batches, ONE, device, compiled=True, compiled_baseline=whole)
            for name, way in ways.items():
                off = largest_difference(name, way, ways["baseline"])
                first = ", ".join(f"{seconds:.1f} s" for seconds in way.first_steps[: WAYS[name].compilations])
                print(f"| {dtype} | {name} | {first} | {off:.1e} (over {compared_steps(name)} steps) |")


def nccl(args: argparse.Namespace, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    size, rows = size_of(args)
    with tempfile.TemporaryDirectory() as scratch:
        dist.init_process_group(backend, init_method=f"file://{scratch}/rendezvous", rank=0, world_size=1)
        torch.manual_seed(0)
        head = OurTrainer(config_of(size, rows), size.metadata, ONE, device).head
        data = next(random_batches(size, rows, device))
        came: dict[torch.nn.Parameter, Tensor] = {}  # the gradients as they were before the sum
        noting = [
            p.register_post_accumulate_grad_hook(lambda p: came.update({p: p.grad.clone()})) for p in head.parameters()
        ]
        told_two = Ranks(0, 2, 0)  # so that it does not skip the sum; the group has one rank, so nothing changes
        summed = told_two.sum_gradients_of(head)

        def backward(module: torch.nn.Module = head) -> None:
            head.zero_grad()
            module(carry=head.initial_carry(data), batch=data).loss.backward()

        def one_a_parameter() -> None:
            backward()
            for parameter in came:
                dist.all_reduce(parameter.grad)

        ways = {
            "no sum": backward,
            "one call a parameter, after it": one_a_parameter,
            "DistributedDataParallel, during it": lambda: backward(summed),
        }
        for way in ways.values():
            way()
            assert all(torch.equal(p.grad, before) for p, before in came.items()), "a sum of one rank changed it"
        for handle in noting:
            handle.remove()
        times = in_turns(ways, 20, device)
        dist.destroy_process_group()
    table_head(f"{backend}, one rank, {len(came)} gradients", "forward and backward")
    for name, seconds in times.items():
        print(f"| {name} | {milliseconds(seconds)} |")


PARTS = {
    "trace": trace, "graph": graph, "resume": resume, "attention": attention, "compile": compilation, "nccl": nccl,
}  # fmt: skip
STEPS = {"trace": 200, "graph": 40, "resume": 40}
TOY_STEPS = 10


def main() -> None:
    options = parser(__doc__)
    options.add_argument("part", choices=PARTS)
    options.add_argument("--data-path", default="data/sudoku-extreme-1k-aug-1000", help="of trace and resume")
    options.add_argument("--steps", type=positive, help=f"training steps (default: {STEPS}, {TOY_STEPS} with --toy)")
    options.add_argument("--batch", type=positive, help="global batch size")
    options.add_argument("--out", type=Path, default=Path("."), help="folder for files (default: here)")
    args = options.parse_args()
    args.steps = args.steps or (TOY_STEPS if args.toy else STEPS.get(args.part))
    torch.set_float32_matmul_precision("highest")  # some containers turn TF32 on
    with one_line_errors():
        PARTS[args.part](args, select_device(args.device))


if __name__ == "__main__":
    main()
