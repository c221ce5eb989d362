"""Whether the fast ways of computing agree with the plain ones: python -m benchmarks.agreement PART [options]

trace       losses of --steps training steps (200): float32 and bfloat16, ours and the baseline, from the same weights
            on the same Sudokus (--data-path); writes trace.json and trace.png
graph       the same steps (40) with and without a CUDA graph, of a model whose rows halt at different steps, with
            exploration: losses, halting; and two evaluation batches
resume      pretrain.py for 40 steps on --data-path, and again from its state after 20: metrics.jsonl line by line
attention   outputs, gradients and time of each attention kernel that runs here, against float64
compile     losses of the first steps: eager, blocks compiled, the baseline compiled as a whole (not with --toy)
nccl        gradients through a process group of one rank: buckets and one call a parameter, equal and timed

Prints a table each, and fails where what must agree does not; --out is a folder for files. Runs on a CPU too (no graph,
gloo for NCCL). `--toy`: a model for a test. In float32, TF32 is off.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.report import in_turns, milliseconds, parser, positive
from benchmarks.sizes import SIZES, config_of, metadata_of, random_batches
from benchmarks.trajectories import ONE, graph, resume, trace
from benchmarks.ways import CHECKED_STEPS, WAYS, OurTrainer, build_ways, compared_steps, largest_difference
from errors import UserError, one_line_errors
from models.attention import select_attention
from training.distributed import Ranks, select_device
from training.gradients import GradientBuckets

BACKENDS = {
    "sdpa math": "MATH",
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa memory-efficient": "EFFICIENT_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
}


def attention(args: argparse.Namespace, device: torch.device) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = [(2, 17, 2, 16)] if args.toy else [(96, 82, 8, 64), (768, 82, 8, 64), (96, 901, 8, 64)]
    calls = kernels(device, dtype)
    print("| shape (B, S, heads, dim) | kernel | output off by | gradients off by | forward + backward |")
    print("| --- " * 5 + "|")
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
    """PyTorch's backends one by one, what `auto` takes, and FlashAttention where it is installed."""

    def backend(which: SDPBackend) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(which):
                q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return call

    members = {name: SDPBackend.__members__.get(member) for name, member in BACKENDS.items()}  # cuDNN from 2.5 on
    calls = {name: backend(member) for name, member in members.items() if member is not None}
    for name in ("sdpa", "flash2", "flash3", "auto"):
        try:
            calls[f"arch.attention={name}"] = select_attention(name, device.type, dtype)
        except UserError as error:
            print(f"(left out: {error})\n")
    return calls


def with_gradients(call: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """-> the output for q, k, v, and their gradients for the fourth input as the output's."""
    q, k, v = (tensor.detach().requires_grad_() for tensor in inputs[:3])
    out = call(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])]


def compilation(args: argparse.Namespace, device: torch.device) -> None:
    size = SIZES["toy" if args.toy else "sudoku"]
    batch = args.batch or size.batches[0]
    args.compile, args.compile_baseline = True, not args.toy  # a whole model takes the compiler minutes on a CPU
    batches = list(itertools.islice(random_batches(size, batch, device), CHECKED_STEPS))
    dtypes = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
    print("| dtype | way | first step cold, warm | largest difference of a loss from the eager baseline |")
    print("| --- " * 4 + "|")
    for dtype in dtypes:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            config = config_of(size, batch, f"arch.forward_dtype={dtype}")
            ways = build_ways(config, size, batches, args, ONE, device)
            for name, way in ways.items():
                off = largest_difference(name, way, ways["baseline"])
                first = ", ".join(f"{seconds:.1f} s" for seconds in way.first_steps[: WAYS[name].compilations])
                print(f"| {dtype} | {name} | {first} | {off:.1e} (over {compared_steps(name)} steps) |")


def nccl(args: argparse.Namespace, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    size = SIZES["toy" if args.toy else "sudoku"]
    with tempfile.TemporaryDirectory() as scratch:
        dist.init_process_group(backend, init_method=f"file://{scratch}/rendezvous", rank=0, world_size=1)
        torch.manual_seed(0)
        head = OurTrainer(config_of(size, size.batches[0]), metadata_of(size), ONE, device).head
        data = next(random_batches(size, size.batches[0], device))
        came: dict[torch.nn.Parameter, Tensor] = {}  # the gradients as they were before the sum
        noting = [
            p.register_post_accumulate_grad_hook(lambda p: came.update({p: p.grad.clone()})) for p in head.parameters()
        ]
        told_two = Ranks(0, 2, 0)  # so that it does not skip the sum; the group has one rank, which changes nothing
        buckets = GradientBuckets(head.parameters(), told_two)

        def backward() -> None:
            head.zero_grad()
            head(carry=head.initial_carry(data), batch=data).loss.backward()

        def one_a_parameter() -> None:
            backward()
            for parameter in came:
                dist.all_reduce(parameter.grad)

        def in_buckets() -> None:
            with buckets.summing():
                backward()

        for way in (one_a_parameter, in_buckets, in_buckets):  # the first backward pass fills the buckets
            way()
            assert all(torch.equal(p.grad, before) for p, before in came.items()), "a sum of one rank changed it"
        for handle in noting:
            handle.remove()
        ways = {"no sum": backward, "one call a parameter, after it": one_a_parameter, "buckets, during it": in_buckets}
        times = in_turns(ways, 20, device)
        dist.destroy_process_group()
    print(f"| {backend}, one rank, {len(came)} gradients | forward and backward |\n| --- | --- |")
    for name, seconds in times.items():
        print(f"| {name} | {milliseconds(seconds)} |")


PARTS = {
    "trace": trace,
    "graph": graph,
    "resume": resume,
    "attention": attention,
    "compile": compilation,
    "nccl": nccl,
}
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
