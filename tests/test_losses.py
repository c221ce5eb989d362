"""Losses against the original's numbers: python -m pytest tests/test_losses.py"""

import numpy as np
import pytest
import torch

from models.losses import LOSSES, ACTLossHead, log_stablemax, softmax_cross_entropy, stablemax_cross_entropy
from tests.reference_models import DEVICE, REFERENCE, Variant, vectors


def test_values_equal_the_original():
    expected = vectors(REFERENCE / "losses.npz")
    logits, labels = expected["logits"], expected["labels"]
    assert (labels == -100).any()
    for got, key, rtol in (
        (log_stablemax(logits), "log_stablemax", 1e-9),
        (stablemax_cross_entropy(logits, labels), "stablemax_cross_entropy", 1e-9),
        (softmax_cross_entropy(logits, labels), "softmax_cross_entropy", 1e-5),
    ):
        assert got.dtype == expected[key].dtype
        torch.testing.assert_close(got, expected[key], rtol=rtol, atol=1e-12)


def test_stablemax_gradient_is_right_where_its_branches_meet():
    """0 and ±1 are the places where a careless `where` gives NaN, or a gradient twice."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.5, -3.0]], dtype=torch.float64, device=DEVICE, requires_grad=True)
    label = torch.tensor([0], device=DEVICE)
    stablemax_cross_entropy(logits, label).sum().backward()
    eps, numeric = 1e-6, []
    for i in range(5):
        step = torch.zeros_like(logits)
        step[0, i] = eps
        up, down = (stablemax_cross_entropy(logits.detach() + s, label).item() for s in (step, -step))
        numeric.append((up - down) / (2 * eps))
    np.testing.assert_allclose(logits.grad[0].cpu(), numeric, rtol=1e-5)


def test_unknown_loss_lists_the_choices():
    with pytest.raises(ValueError, match=", ".join(LOSSES)):
        ACTLossHead(torch.nn.Identity(), "hinge")


def test_head_returns_a_named_tuple_with_the_outputs_asked_for():
    variant = Variant("rope_stablemax")
    head, batch = variant.head(), variant.batch(0)
    head.eval()
    out = head(carry=head.initial_carry(batch), batch=batch, return_keys=["logits", "nonsense"])
    carry, loss, metrics, outputs, all_finished = out
    assert out.carry is carry
    assert out.loss is loss
    assert metrics["steps"].item() == 0
    assert list(outputs) == ["logits"]
    assert not outputs["logits"].requires_grad
    assert not all_finished


def test_a_q_of_zero_says_right():
    """The decision at sigmoid(q_halt) = 1/2, of two sequences that are right and one that is not."""
    head = ACTLossHead(torch.nn.Identity(), "softmax_cross_entropy")
    labels = torch.tensor([[1, 0], [1, 0], [1, 0]])
    outputs = {"logits": torch.eye(2)[torch.tensor([[1, 0], [1, 0], [1, 1]])], "q_halt_logits": torch.zeros(3)}
    _, metrics = head.score(outputs, labels, torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert metrics["exact_accuracy"] == metrics["q_halt_accuracy"] == 2


def test_padding_rows_do_not_count():
    variant = Variant("no_act")
    head, batch = variant.head().eval(), dict(variant.batch(0))
    batch["labels"] = batch["labels"].clone()
    batch["labels"][2:] = -100
    out = head(carry=head.initial_carry(batch), batch=batch)
    assert out.all_finished
    assert out.metrics["count"].item() == 2
    assert torch.isfinite(out.loss)
