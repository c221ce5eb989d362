"""The kernel of models/mixing.py: python -m benchmarks.mixing [--toy]

PyTorch's own way, compiled, against the kernel with every tile that is tried here, fastest first, and the distance of
both from float64. The fastest belongs at the top of models/mixing.py.

On a GPU half a minute, most of it compiling. With --toy on a CPU it runs in Triton's interpreter, which says that it is
right and nothing about its time: TRITON_INTERPRET=1 python -m benchmarks.mixing --toy
"""

import argparse
import itertools
import logging
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.report import in_turns, parser, positive
from errors import UserError, first_line, one_line_errors
from models.layers import weights_cast
from models.trm import MixerBlock
from training.distributed import device_name, select_device

log = logging.getLogger(__name__)
BATCHES, POSITIONS, HIDDEN = (384, 1344), 97, 512  # TRM on Sudoku, in training and in evaluation
CALLS = 20  # of a kernel in one timing
EXACT = 64  # sequences that are computed in float64
TILES = [(128, 64), (128, 32), (64, 64), (64, 32), (64, 128), (128, 128)]  # channels, columns of the width
LAUNCHES = [(4, 1), (4, 2), (4, 3), (8, 1), (8, 2), (8, 3)]  # warps, loads ahead
TOY = [((128, 64), (4, 2))]


@torch.no_grad()
def measure(batch: int, hidden: int, kernel, args: argparse.Namespace, device: torch.device) -> list[str]:
    """-> the rows of a table."""
    dtype = torch.float16 if args.toy else torch.bfloat16  # the interpreter has no products of bfloat16
    block = MixerBlock(POSITIONS, hidden, 4.0, 1e-5).to(device)
    x = torch.randn(batch, POSITIONS, hidden, device=device).to(dtype)
    weights = [linear.weight.to(dtype) for linear in (block.mlp_t.gate_up_proj, block.mlp_t.down_proj)]

    compiled = block.mixed if args.toy else torch.compile(block.mixed, dynamic=False)
    ways: dict[str, Callable[[], Tensor]] = {"PyTorch": lambda: compiled(x)}
    for tile, (warps, stages) in TOY if args.toy else itertools.product(TILES, LAUNCHES):

        def call(tile=tile, warps=warps, stages=stages) -> Tensor:
            kernel.TILE, kernel.LAUNCH = tile, dict(num_warps=warps, num_stages=stages)
            return kernel.mix(x, *weights, block.eps)

        ways[f"{tile[0]} × {tile[1]}, {warps} warps, {stages} ahead"] = call

    exact = block.mixed(x[:EXACT].double())
    errors = {}
    with weights_cast(block, dtype):
        for way, call in list(ways.items()):
            try:
                errors[way] = ((call()[:EXACT].double() - exact).norm() / exact.norm()).item()
            except Exception as error:  # a tile that needs more registers or shared memory than there are
                log.warning("%s is left out: %s", way, first_line(error))
                del ways[way]
        calls = 1 if args.toy else CALLS
        repeated = {way: lambda call=call: [call() for _ in range(calls)] for way, call in ways.items()}
        times = {way: statistics.median(v) / calls for way, v in in_turns(repeated, args.repeats, device).items()}
    shown = sorted((way for way in times if way != "PyTorch"), key=times.get)[: args.shown]
    return [
        f"| ({batch}, {POSITIONS}, {hidden}) | {way} | {1e3 * times[way]:.4f} | {times['PyTorch'] / times[way]:.2f}× "
        f"| {errors[way]:.1e} |"
        for way in ("PyTorch", *shown)
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=positive, default=5, help="timed repetitions of each way")
    options.add_argument("--shown", type=int, default=4, help="of the tiles, the fastest")
    args = options.parse_args()
    with one_line_errors():
        device = select_device(args.device)
        if device.type != "cuda" and not args.toy:
            raise UserError("the kernel is for CUDA; --toy runs it in Triton's interpreter on a CPU")
        try:
            from models import mixing
        except ImportError as error:
            raise UserError(f"the kernel needs Triton ({first_line(error)}); PyTorch for CUDA brings it") from None
        torch.manual_seed(0)
        print(f"{device_name(device)}\n\n| size | | ms | against PyTorch | error |\n| --- | --- | --- | --- | --- |")
        for batch in (2,) if args.toy else BATCHES:
            rows = measure(batch, 128 if args.toy else HIDDEN, mixing, args, device)
            print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
