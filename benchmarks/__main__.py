"""The benchmarks that need no source data, in one run: python -m benchmarks [--toy] [--device auto] (`make bench`)

Runs loader, step and evaluate with their defaults, each against the baseline in the same process. Prints the machine
and one table, and writes benchmarks/results/<date and time>.json. Cost on 2 cores: three minutes; more if the compiler
is slow.

Not included: benchmarks.agreement, flops and profile, and benchmarks/gpu.sh for what only a GPU can show.
"""

import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import evaluate, loader, step
from benchmarks.report import publish, timing_parser
from errors import one_line_errors
from training.distributed import Ranks, select_device

RESULTS = Path(__file__).parent / "results"  # ignored by git


def main() -> None:
    args = timing_parser(__doc__).parse_args()
    common = ["--device", args.device, *["--toy"] * args.toy]
    common += ["--repeats", str(args.repeats)] if args.repeats else []
    path = args.json or RESULTS / f"{datetime.now(timezone.utc):%Y-%m-%d_%H%M%S}.json"
    with one_line_errors():
        device = select_device(args.device)
        print("loader", file=sys.stderr)
        results = loader.run(loader.options().parse_args(common))
        print("step: the first steps compile, which takes a while", file=sys.stderr)
        results += step.run(step.options().parse_args(common), Ranks(0, 1, 0), device)
        print("evaluate", file=sys.stderr)
        results += evaluate.run(evaluate.options().parse_args(common), device)
        publish(results, device, path)
        evaluate.refuse_differences(results)


if __name__ == "__main__":
    main()
