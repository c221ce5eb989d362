"""Answers step by step, and boards as text: python -m pytest tests/test_steps.py"""

import numpy as np
import pytest
import torch

from evaluators.boards import arc_lines, in_rows, maze_lines, side_by_side, sudoku_lines
from evaluators.steps import reasoning_steps
from tests.arc_oracle import oracle_encode
from tests.reference_models import VARIANTS, Variant


def trained(name: str):
    variant = Variant(name)
    head = variant.head()
    head.load_state_dict(variant.group("final/"))
    arrays = variant.group("eval/")
    return head, {key: arrays[key] for key in variant.batch(0)}, arrays


@pytest.mark.parametrize("name", VARIANTS)
def test_the_last_step_is_the_original_evaluation(name):
    head, batch, arrays = trained(name)
    steps = list(reasoning_steps(head.model, batch["inputs"], batch["puzzle_identifiers"]))
    assert len(steps) == head.model.config.halt_max_steps
    assert torch.equal(steps[-1].answer, arrays["logits"].argmax(-1))
    torch.testing.assert_close(steps[-1].q_halt, arrays["q_halt_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(steps[-1].q_continue, arrays["q_continue_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(steps[-1].confidence, 1 / (1 + (-arrays["q_halt_logits"]).exp()), atol=1e-5, rtol=0)


def test_every_step_is_that_of_the_loss_head():
    """The head of training mode is left in evaluation mode; it goes through `Carry`, the steps do not."""
    head, batch, _ = trained("rope_stablemax")
    head.train()
    steps = reasoning_steps(head.model, batch["inputs"], batch["puzzle_identifiers"])
    first = next(steps)
    assert not head.model.training
    carry = head.initial_carry(batch)
    for step in [first, *steps]:
        with torch.no_grad():
            out = head(carry=carry, batch=batch, return_keys=["logits", "q_halt_logits"])
        carry = out.carry
        assert torch.equal(step.answer, out.outputs["logits"].argmax(-1))
        assert torch.equal(step.q_halt, out.outputs["q_halt_logits"])
        assert torch.equal(step.inner_carry.z_H, carry.inner_carry.z_H)
        assert torch.equal(step.inner_carry.z_L, carry.inner_carry.z_L)
    assert out.all_finished


def test_fewer_and_more_steps_than_in_training():
    head, batch, _ = trained("rope_stablemax")

    def q_halts(steps=None) -> torch.Tensor:
        found = reasoning_steps(head.model, batch["inputs"], batch["puzzle_identifiers"], steps)
        return torch.stack([step.q_halt for step in found])

    usual, fewer, more = q_halts(), q_halts(2), q_halts(9)
    assert [len(found) for found in (usual, fewer, more)] == [4, 2, 9]
    assert torch.equal(fewer, usual[:2])
    assert torch.equal(more[:4], usual)
    assert not torch.equal(more[4], more[3])


def test_sudoku_boards():
    tokens = np.array([1, 2, 3, 4, 5] * 3 + [1])
    changed = np.zeros(16, bool)
    changed[1] = True
    lines = sudoku_lines(tokens, changed)
    assert lines[0] == ". 1*│ 2 3 "
    assert lines[2] == "────┼─────"
    assert len(lines) == 5
    assert len(set(map(len, sudoku_lines(np.full(81, 2))))) == 1


def test_maze_boards():
    tokens, changed = np.array([3, 5, 2, 5, 2, 1, 0, 1, 4]), np.array([0, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    assert maze_lines(tokens) == ["So ", "o #", "?#G"]
    assert maze_lines(tokens, changed) == ["S+-", "o !", "?#G"]


def test_arc_boards():
    tokens, changed = np.array(oracle_encode([[0, 9], [3, 3], [5, 0]]), np.uint8), np.zeros(900, bool)
    changed[[31, 200]] = True
    assert arc_lines(tokens, changed) == ["0 9 ", "3 3*", "5 0 "]
    coloured = arc_lines(tokens, changed, colour=True)
    assert coloured[1].count("\x1b[") == 4
    assert coloured[1].count("48;5;41m3") == 2  # (0, 215, 95), next to ARC's green (46, 204, 64)
    assert arc_lines(np.zeros(900, np.uint8)) == ["(no grid)"]


def test_boards_side_by_side():
    columns = [("a", ["11", "22"]), ("b", ["3"])]
    assert side_by_side(columns, gap=1) == "a  b\n11 3\n22"
    assert in_rows(columns, width=4, gap=1) == "a  b\n11 3\n22"
    assert in_rows(columns, width=3, gap=1) == "a\n11\n22\n\nb\n3"
    coloured = [("a", ["\x1b[31m11\x1b[0m"]), ("b", ["3"])]
    assert side_by_side(coloured, gap=1) == "a  b\n\x1b[31m11\x1b[0m 3"
    assert in_rows(coloured, width=4, gap=1).count("\n") == 1
