"""The model's reasoning: its answer, its Q values and its states after each step. No label is read.

An evaluation runs every sequence `halt_max_steps` steps, and so does this; it may also run more steps than the model
was trained with.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1, InnerCarry


@dataclass
class Step:
    answer: Tensor  # (B, S) int64: the most likely token of each cell
    q_halt: Tensor  # (B,) float32 logits
    q_continue: Tensor  # (B,) float32 logits
    inner_carry: InnerCarry  # z_H and z_L after this step, (B, P + S, D)

    @property
    def confidence(self) -> Tensor:
        """(B,): sigmoid of q_halt, the model's own estimate that the whole answer is right."""
        return torch.sigmoid(self.q_halt)


@torch.inference_mode()
def reasoning_steps(
    model: HierarchicalReasoningModel_ACTV1, inputs: Tensor, puzzle_identifiers: Tensor, max_steps: int | None = None
) -> Iterator[Step]:
    """Yield `max_steps` steps (default: the model's `halt_max_steps`) from the initial states, in evaluation mode.

    `model` is the `model` of a loss head; inputs (B, S) and puzzle_identifiers (B,) are integers on its device.
    """
    model.eval()
    inner, rows = model.inner, inputs.shape[0]
    data = {"inputs": inputs, "puzzle_identifiers": puzzle_identifiers}
    all_new = torch.ones(rows, dtype=torch.bool, device=inputs.device)
    carry = inner.reset_carry(all_new, inner.empty_carry(rows, inputs.device))
    for _ in range(model.config.halt_max_steps if max_steps is None else max_steps):
        carry, logits, (q_halt, q_continue) = inner(carry, data)
        yield Step(logits.argmax(-1), q_halt, q_continue, carry)
