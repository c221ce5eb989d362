"""What the model answers after each reasoning step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from puzzle_dataset import Batch


@dataclass
class Step:
    answer: Tensor  # (B, seq_len): the most likely token of each cell
    confidence: Tensor  # (B,): sigmoid of q_halt, the model's own estimate that the answer is right


@torch.inference_mode()
def reasoning_steps(head: nn.Module, batch: Batch) -> list[Step]:
    """Run `batch` until the model halts; -> one `Step` a reasoning step."""
    head.eval()
    carry, steps = head.initial_carry(batch), []
    while True:
        out = head(carry=carry, batch=batch, return_keys=["logits", "q_halt_logits"])
        carry = out.carry
        steps.append(Step(out.outputs["logits"].argmax(-1), torch.sigmoid(out.outputs["q_halt_logits"])))
        if out.all_finished:
            return steps
