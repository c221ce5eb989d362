"""The kernels of models/fused.py: python -m benchmarks.kernels [--toy]

For each kernel and size, PyTorch's own way, compiled, against ours with every choice of tile and launch that is tried
here, fastest first; and how far both are from float64. What is fastest belongs at the top of models/fused.py.

On a GPU every choice is compiled first: two minutes. With --toy on a CPU they run in Triton's interpreter, which says
that they are right and nothing about their time: TRITON_INTERPRET=1 python -m benchmarks.kernels --toy
"""

import argparse
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import in_turns, parser
from errors import UserError, first_line, one_line_errors
from models.layers import RotaryEmbedding, SwiGLU, apply_rotary, rms_norm, sdpa
from training.distributed import device_name, select_device

log = logging.getLogger(__name__)
HIDDEN, HEADS = 512, 8
CALLS = 20  # of a kernel in one timing
# (rows, columns, depth), (queries, keys) or (channels, width); each with (warps, loads ahead)
TILES = {
    "swiglu": [(128, 128, 64), (128, 64, 64), (64, 128, 64), (256, 64, 64), (128, 128, 32), (128, 64, 128)],
    "attention": [(128, 128), (64, 128), (32, 128), (128, 64), (64, 64), (64, 32), (32, 32)],
    "mix": [(128, 64), (128, 32), (64, 64), (64, 32), (64, 128), (128, 128)],
}
LAUNCHES = {
    "swiglu": [(8, 3), (8, 4), (4, 3), (4, 4)],
    "attention": [(8, 1), (8, 2), (4, 1), (4, 2)],
    "mix": [(8, 2), (8, 3), (4, 2), (4, 3)],
}


@dataclass
class Case:
    """A kernel at a size."""

    kernel: str
    size: str
    ours: Callable[[], Tensor]
    plain: Callable[..., Tensor]  # of `operands`, in any dtype
    operands: list[Tensor]

    def exact(self) -> Tensor:
        """In float64, of the first sequences."""
        few = [operand[:64] if operand.ndim > 2 else operand for operand in self.operands]
        return self.plain(*(operand.double() for operand in few))


def cases(fused, toy: bool, device: torch.device) -> Iterator[Case]:
    """The sizes of Sudoku at batch 96 and 768, of ARC at 96, and of TRM's mixing at 384."""
    dtype = torch.float16 if toy else torch.bfloat16  # the interpreter has no products of bfloat16
    hidden, heads = (128, 2) if toy else (HIDDEN, HEADS)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    for batch, length in [(2, 82)] if toy else [(768, 82), (96, 82), (96, 901)]:
        with torch.device(device):
            weight = SwiGLU(hidden, 4.0).gate_up_proj.weight.detach().to(dtype)
            tables = RotaryEmbedding(hidden // heads, length, 10000.0)()
        x, qkv, size = drawn(batch, length, hidden), drawn(batch, length, 3 * hidden), f"({batch}, {length}, {hidden})"
        yield Case("swiglu", size, lambda x=x, w=weight: fused.swiglu(x, w), plain_swiglu, [x, weight])
        yield Case(
            "attention",
            size,
            lambda qkv=qkv, tables=tables: fused.attention(qkv, *tables, heads),
            lambda qkv, tables=tables: plain_attention(qkv, tables, heads),
            [qkv],
        )
    batch = 2 if toy else 384
    with torch.device(device):
        mlp = SwiGLU(97, 4.0).to(dtype)
    weights = [mlp.gate_up_proj.weight.detach(), mlp.down_proj.weight.detach()]
    x = drawn(batch, 97, hidden)
    yield Case("mix", f"({batch}, 97, {hidden})", lambda: fused.mix(x, *weights, 1e-5), plain_mix, [x, *weights])


def plain_swiglu(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    return F.silu(gate) * up


def plain_attention(qkv: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, width // 3 // heads).unbind(2)
    return sdpa(apply_rotary(q, tables), apply_rotary(k, tables), v).reshape(batch, length, width // 3)


def plain_mix(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    across = x.transpose(1, 2)
    return rms_norm(across + F.linear(plain_swiglu(across, gate_up), down), 1e-5).transpose(1, 2)


@torch.no_grad()
def measure(case: Case, fused, args: argparse.Namespace, device: torch.device) -> list[str]:
    """-> the rows of a table."""
    plain = case.plain if args.toy else torch.compile(case.plain, dynamic=False)
    ways: dict[str, Callable[[], Tensor]] = {"PyTorch": lambda: plain(*case.operands)}
    name = case.kernel.upper()
    for tile, (warps, stages) in itertools.product(TILES[case.kernel], LAUNCHES[case.kernel]):

        def call(tile=tile, warps=warps, stages=stages) -> Tensor:
            setattr(fused, f"{name}_TILE", tile)
            setattr(fused, f"{name}_LAUNCH", dict(num_warps=warps, num_stages=stages))
            return case.ours()

        ways[f"{' × '.join(map(str, tile))}, {warps} warps, {stages} ahead"] = call
        if args.toy:
            break
    errors, exact = {}, case.exact()
    for way, call in list(ways.items()):
        try:
            errors[way] = ((call()[: len(exact)].double() - exact).norm() / exact.norm()).item()
        except Exception as error:  # a tile that needs more registers or shared memory than there are
            log.warning("%s %s is left out: %s", case.kernel, way, first_line(error))
            del ways[way]
    calls = 1 if args.toy else CALLS
    repeated = {way: lambda call=call: [call() for _ in range(calls)] for way, call in ways.items()}
    times = {way: statistics.median(v) / calls for way, v in in_turns(repeated, args.repeats, device).items()}
    shown = sorted((way for way in times if way != "PyTorch"), key=times.get)[: args.shown]
    return [
        f"| {case.kernel} {case.size} | {way} | {1e3 * times[way]:.4f} | {times['PyTorch'] / times[way]:.2f}× "
        f"| {errors[way]:.1e} |"
        for way in ("PyTorch", *shown)
    ]


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--shown", type=int, default=4, help="of the choices for each kernel, the fastest")
    args = options.parse_args()
    with one_line_errors():
        device = select_device(args.device)
        if device.type != "cuda" and not args.toy:
            raise UserError("the kernels are for CUDA; --toy runs them in Triton's interpreter on a CPU")
        try:
            from models import fused
        except ImportError as error:
            raise UserError(f"these kernels need Triton ({first_line(error)}); PyTorch for CUDA brings it") from None
        torch.manual_seed(0)
        print(f"{device_name(device)}\n\n| kernel | | ms | against PyTorch | error |\n| --- | --- | --- | --- | --- |")
        for case in cases(fused, args.toy, device):
            print("\n".join(measure(case, fused, args, device)), flush=True)


if __name__ == "__main__":
    main()
