"""Answers step by step, and boards as text: python -m pytest tests/test_steps.py"""

import numpy as np
import torch

from evaluators.boards import side_by_side, sudoku_lines
from evaluators.steps import reasoning_steps
from tests.reference_models import Variant


def test_the_last_step_is_the_evaluation():
    variant = Variant("rope_stablemax")
    head = variant.head()
    head.load_state_dict(variant.group("final/"))
    arrays = variant.group("eval/")
    steps = reasoning_steps(head, {key: arrays[key] for key in variant.batch(0)})
    assert len(steps) == variant.spec["config"]["halt_max_steps"]
    assert torch.equal(steps[-1].answer, arrays["logits"].argmax(-1))
    torch.testing.assert_close(steps[-1].confidence, torch.sigmoid(arrays["q_halt_logits"]), atol=1e-5, rtol=0)


def test_boards():
    tokens = np.array([1, 2, 3, 4, 5] * 3 + [1])
    changed = np.zeros(16, bool)
    changed[1] = True
    lines = sudoku_lines(tokens, changed)
    assert lines[0] == ". 1*│ 2 3 "
    assert lines[2] == "────┼─────"
    assert len(lines) == 5
    assert len(set(map(len, sudoku_lines(np.full(81, 2))))) == 1
    assert side_by_side([("a", ["11", "22"]), ("b", ["3"])], gap=1) == "a  b\n11 3\n22"
