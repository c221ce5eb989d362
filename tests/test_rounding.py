"""Comparing across processors, with a module whose sensitivity is known: python -m pytest tests/test_rounding.py"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.reference_models import Variant
from tests.rounding import TIMES, assert_equal_to_the_original, nudge
from tests.test_reference_models import evaluation, original_evaluation

GAIN = 1e4  # on the last bit of a weight of 1, which is 1.2e-7: 1.2e-3


def amplified(change, offset: float = 0.0, steps: int = 0) -> list[dict]:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    change(module)
    output = 1 + GAIN * (module.weight.detach().double().numpy() - 1) + offset
    return [{"outputs/logits": output, "exactly/steps": np.array(steps)}]


def test_a_nudge_moves_every_weight_by_its_last_bit():
    module = nn.Linear(64, 64)
    before = module.weight.detach().clone()
    nudge(module, 0)
    bits = (module.weight.detach().view(torch.int32) - before.view(torch.int32)).abs()
    assert (bits == 1).all()
    assert 0.4 < (module.weight > before).float().mean() < 0.6


def test_what_rounding_explains_is_accepted_but_where_the_vectors_were_made():
    expected = amplified(lambda module: None, offset=TIMES * GAIN * 2**-24)
    assert_equal_to_the_original(amplified, expected, strictly=False)
    with pytest.raises(AssertionError, match="outputs/logits"):
        assert_equal_to_the_original(amplified, expected, strictly=True)


@pytest.mark.parametrize("wrong", [{"offset": 2 * TIMES * GAIN * 2**-23}, {"steps": 1}])
@pytest.mark.parametrize("strictly", [True, False])
def test_what_rounding_does_not_explain_is_refused(wrong, strictly):
    with pytest.raises(AssertionError):
        assert_equal_to_the_original(amplified, amplified(lambda module: None, **wrong), strictly)


def test_stages_are_compared_until_nudging_makes_another_run():
    def two(change, steps=0):
        first, second = amplified(change)[0], amplified(change, steps=steps)[0]
        moved = second["outputs/logits"] != 1
        return [first, second | {"exactly/steps": np.array(int(moved.any()))}]

    expected = [amplified(lambda module: None)[0], amplified(lambda module: None, offset=1, steps=7)[0]]
    assert_equal_to_the_original(two, expected, strictly=False)
    expected[0]["exactly/steps"] += 1
    with pytest.raises(AssertionError):
        assert_equal_to_the_original(two, expected, strictly=False)


def test_what_nudging_moves_too_far_is_refused():
    """Such a model says nothing of the formula."""

    def far(change):
        stage = amplified(change)[0]
        return [stage | {"outputs/logits": 1 + 1e3 * (stage["outputs/logits"] - 1)}]

    with pytest.raises(AssertionError, match="outputs/logits"):
        assert_equal_to_the_original(far, amplified(lambda module: None, offset=0.1), strictly=False)


def too_strong(think):
    return lambda self, state, x, *rest: think(self, state, 1.0001 * x, *rest)


def noisy(think):
    return lambda self, state, x, *rest: think(self, state, x + 1e-5 * torch.randn_like(x), *rest)


@pytest.mark.parametrize("mistake", [too_strong, noisy])
@pytest.mark.parametrize("name", ["trm_mlp", "eqr_damped_mlp"])
def test_a_mistake_is_seen_on_any_processor(name, mistake, monkeypatch):
    """Of the variants whose rounding is amplified most: an input that is a ten-thousandth too strong, or drawn."""
    variant = Variant(name)
    monkeypatch.setattr(variant.model_class.Inner, "think", mistake(variant.model_class.Inner.think))
    with pytest.raises(AssertionError):
        assert_equal_to_the_original(
            lambda change: evaluation(variant, change), original_evaluation(variant), strictly=False
        )
