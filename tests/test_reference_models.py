"""Every model variant against the original's numbers: python -m pytest tests/test_reference_models.py"""

import numpy as np
import pytest
import torch

from tests.reference_models import VARIANTS, Variant
from training.step import WeightAverage


@pytest.mark.parametrize("name", VARIANTS)
def test_training_equals_the_original(name):
    variant = Variant(name)
    head = variant.head()
    assert sum(p.numel() for p in head.parameters()) == variant.spec["num_params"]
    average = WeightAverage(head, variant.spec.get("ema_rate", 0))
    for step, out in variant.train(head, average):
        if step == 0:
            grads = {key: p.grad for key, p in head.named_parameters()}
            assert grads.keys() == variant.group("grad0/").keys()
            for key, expected in variant.group("grad0/").items():
                torch.testing.assert_close(grads[key], expected, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
        np.testing.assert_allclose(out.loss.item(), variant.arrays["train/loss"][step], rtol=1e-5)
        metrics = [float(out.metrics[key]) for key in variant.spec["metric_keys_train"]]
        np.testing.assert_allclose(metrics, variant.arrays["train/metrics"][step], rtol=1e-5)
        assert sorted(out.metrics) == sorted(variant.spec["metric_keys_train"])
        np.testing.assert_array_equal(out.carry.halted.cpu(), variant.arrays["train/halted"][step])
        np.testing.assert_array_equal(out.carry.steps.cpu(), variant.arrays["train/steps"][step])
    assert_weights_equal(head.state_dict(), variant.group("final/"))
    if "ema_rate" in variant.spec:
        assert_weights_equal(average.state_dict(), variant.group("ema/"))


def assert_weights_equal(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(weights[key], values, rtol=0, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_equals_the_original(name):
    variant = Variant(name)
    head = variant.head()
    head.load_state_dict(variant.group("final/"))
    head.eval()
    batch = {key: value for key, value in variant.group("eval/").items() if key in variant.batch(0)}
    carry, steps_run = head.initial_carry(batch), 0
    keys = [key for key in ("logits", "q_halt_logits", "q_continue_logits") if f"eval/{key}" in variant.arrays]
    with torch.inference_mode():
        while True:
            carry, _, metrics, outputs, all_finished = head(carry=carry, batch=batch, return_keys=keys)
            steps_run += 1
            if all_finished:
                break
    assert steps_run == variant.arrays["eval/steps_run"]
    for key in keys:
        np.testing.assert_allclose(outputs[key].cpu(), variant.arrays[f"eval/{key}"], rtol=0, atol=1e-4)
    values = [float(metrics[key]) for key in variant.spec["metric_keys_eval"]]
    np.testing.assert_allclose(values, variant.arrays["eval/metrics"], rtol=1e-5)
