"""What a sequence costs in every architecture of the family: python -m benchmarks.family

Operations are counted by training/flops.py, for the published hyper-parameters at the sizes of Sudoku (81 tokens),
Maze and ARC (900 each): for one sequence, of one segment (a reasoning step in evaluation) and of one training step.
Where the family has no recipe for a size, the one for Sudoku is taken.
"""

import sys

from benchmarks.sizes import SIZES, build_head
from models.losses import ACTLossHead
from training.flops import META, count_parameters, flops_per_step

# Architecture: its experiments at the three sizes
RECIPES = {
    "HRM": {"sudoku": "sudoku_extreme_1k", "maze": "maze_hard_1k", "arc": "arc_1"},
    "TRM, attention": {"sudoku": "trm_sudoku", "maze": "trm_maze", "arc": "trm_arc_1"},
    "TRM, mlp": dict.fromkeys(("sudoku", "maze", "arc"), "trm_sudoku_mlp"),
    "EqR": dict.fromkeys(("sudoku", "maze", "arc"), "eqr_sudoku"),
    "URM": dict.fromkeys(("sudoku", "maze", "arc"), "urm_sudoku"),
    "recurrent Transformer": dict.fromkeys(("sudoku", "maze", "arc"), "transformer_sudoku"),
    "direct prediction": dict.fromkeys(("sudoku", "maze", "arc"), "direct_sudoku"),
}


def build(architecture: str, size: str) -> ACTLossHead:
    """On the meta device, with the data of this size."""
    own = SIZES[size]._replace(experiment=RECIPES[architecture][size])
    return build_head(own, 1, META, "arch.forward_dtype=bfloat16")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    print("Sudoku / Maze / ARC, one sequence\n")
    print("| | million weights | GFLOP of a segment | GFLOP of a training step |\n" + "| --- " * 4 + "|")
    for architecture in RECIPES:
        heads = [build(architecture, size) for size in RECIPES[architecture]]
        columns = (
            [count_parameters(head) / 1e6 for head in heads],
            [flops_per_step(head, 1, training=False) / 1e9 for head in heads],
            [flops_per_step(head, 1) / 1e9 for head in heads],
        )
        cells = [" / ".join(f"{value:#.3g}".rstrip(".") for value in column) for column in columns]
        print(f"| {architecture} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
