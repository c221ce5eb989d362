"""Every model variant against the original's numbers: python -m pytest tests/test_reference_models.py"""

import numpy as np
import pytest
import torch

from tests.reference_models import VARIANTS, Variant


@pytest.mark.parametrize("name", VARIANTS)
def test_training_equals_the_original(name):
    variant = Variant(name)
    head = variant.head()
    assert sum(p.numel() for p in head.parameters()) == variant.spec["num_params"]
    for step, out in variant.train(head):
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
    final = head.state_dict()
    assert final.keys() == variant.group("final/").keys()
    for key, expected in variant.group("final/").items():
        torch.testing.assert_close(final[key], expected, rtol=0, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_equals_the_original(name):
    variant = Variant(name)
    head = variant.head()
    head.load_state_dict(variant.group("final/"))
    head.eval()
    batch = {key: value for key, value in variant.group("eval/").items() if key in variant.batch(0)}
    carry, steps_run = head.initial_carry(batch), 0
    keys = ["logits", "q_halt_logits", "q_continue_logits"]
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
