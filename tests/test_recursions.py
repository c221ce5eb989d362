"""docs/recursions.png shows what the models compute: python -m pytest tests/test_recursions.py"""

import pytest
import torch

from models.act import InnerNetwork
from scripts.draw_recursions import MODELS, Update, draw
from tests.in_memory import build_head, composed, random_batches


def computed(inner: InnerNetwork, data: dict[str, torch.Tensor]) -> list[tuple[str, bool]]:
    """(network, whether it carries gradient) of every pass through a stack of blocks in one segment."""
    calls = []
    blocks = inner.compiled_modules()
    firsts = {"f": blocks[0]}
    if hasattr(inner, "H_level") and hasattr(inner, "L_level"):
        firsts = {"f_H": inner.H_level.layers[0], "f_L": inner.L_level.layers[0]}
    for name, block in firsts.items():
        block.register_forward_pre_hook(lambda *_, name=name: calls.append((name, torch.is_grad_enabled())))
    inner(inner.initial_state(len(data["inputs"])), data)
    return calls


@pytest.mark.parametrize("title", MODELS)
def test_every_box_is_a_pass_through_the_blocks(title):
    experiment, segment = MODELS[title]
    config = composed("arch.hidden_size=16", "arch.num_heads=2", "global_batch_size=2", experiment=experiment)
    drawn: list[Update] = segment(config.arch)
    data = next(random_batches(2))
    assert computed(build_head(config).model.inner, data) == [(box.network, box.gradient) for box in drawn]


def test_it_is_drawn():
    assert len(draw().axes) == len(MODELS)
