"""Answers step by step: python -m pytest tests/test_reasoning.py"""

import pytest
import torch

from tests.reference_models import VARIANTS, Variant
from training.reasoning import reasoning_steps


def trained(name: str):
    variant = Variant(name)
    head = variant.head()
    head.load_state_dict(variant.group("final/"))
    arrays = variant.group("eval/")
    return head, {key: arrays[key] for key in variant.batch(0)}, arrays


@pytest.mark.parametrize("name", VARIANTS)
def test_the_last_step_is_the_evaluation(name):
    """Which tests/test_reference_models.py compares with the original's."""
    variant = Variant(name)
    head, batch, _ = trained(name)
    steps = list(reasoning_steps(head.model, batch["inputs"], batch["puzzle_identifiers"]))
    assert len(steps) == head.model.config.halt_max_steps
    _, outputs, _ = variant.evaluate(head)
    assert torch.equal(steps[-1].answer, outputs["logits"].argmax(-1))
    assert torch.equal(steps[-1].q_halt, outputs["q_halt_logits"])
    expected = outputs.get("q_continue_logits", torch.zeros_like(steps[-1].q_halt))  # not every model has it
    assert torch.equal(steps[-1].q_continue, expected)
    torch.testing.assert_close(steps[-1].confidence, torch.sigmoid(outputs["q_halt_logits"]), atol=1e-6, rtol=0)


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
        assert torch.equal(step.state.z_H, carry.inner_carry.z_H)
        assert torch.equal(step.state.z_L, carry.inner_carry.z_L)
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
