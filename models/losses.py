"""Token losses, and the head that adds the two Q losses and the metrics of ACT."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.format import IGNORE_LABEL_ID


def log_stablemax(logits: Tensor) -> Tensor:
    """log(s(x) / Σ s(x)) over the last axis, s(x) = x + 1 for x ≥ 0, 1 / (1 - x) below (Prieto et al. 2025).

    Computed in float64, as in the original; on MPS, which has none, in float32.
    """
    x = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    # Clamped where the other branch is taken: there 1 / (1 - 1) would turn the gradient into NaN.
    s = torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x + 1)
    return s.log() - s.sum(-1, keepdim=True).log()


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_LABEL_ID) -> Tensor:
    """logits (…, vocab), labels (…) -> loss of each token (…), 0 where ignored."""
    valid = labels != ignore_index
    picked = log_stablemax(logits).gather(-1, torch.where(valid, labels, 0).long().unsqueeze(-1)).squeeze(-1)
    return -torch.where(valid, picked, 0)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_LABEL_ID) -> Tensor:
    """logits (…, vocab), labels (…) -> loss of each token (…) in float32, 0 where ignored."""
    flat = F.cross_entropy(
        logits.float().flatten(0, -2), labels.long().flatten(), ignore_index=ignore_index, reduction="none"
    )
    return flat.view(labels.shape)


LOSSES = {
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
}


class ACTOutput(NamedTuple):
    carry: Any
    loss: Tensor  # (): summed over the batch
    metrics: dict[str, Tensor]  # sums over the sequences that halted, `count` of them; losses are over the batch
    outputs: dict[str, Tensor]  # the `return_keys` among the model's outputs, detached
    all_finished: Tensor  # () bool: every row has halted


class ACTLossHead(nn.Module):
    """Token loss + 0.5 (halt loss + continue loss), each summed over the batch (paper, section on ACT)."""

    def __init__(self, model: nn.Module, loss_type: str):
        super().__init__()
        if loss_type not in LOSSES:
            raise ValueError(f"unknown loss '{loss_type}'; choose one of {', '.join(LOSSES)}")
        self.model = model
        self.loss_fn = LOSSES[loss_type]

    def initial_carry(self, batch: dict[str, Tensor]) -> Any:
        return self.model.initial_carry(batch)

    def forward(self, return_keys: list[str] | tuple[str, ...] = (), **model_inputs) -> ACTOutput:
        carry, outputs = self.model(**model_inputs)
        loss, metrics = self.score(outputs, carry.current_data["labels"], carry.steps, carry.halted)
        returned = {key: outputs[key].detach() for key in return_keys if key in outputs}
        return ACTOutput(carry, loss, metrics, returned, carry.halted.all())

    def score(
        self, outputs: dict[str, Tensor], labels: Tensor, steps: Tensor, halted: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics, as in `ACTOutput`, of the model's outputs in one step.

        labels (B, S); steps (B,): taken so far, this one included; halted (B,) bool: whether it was a row's last.
        """
        metrics, exact, labelled = measure(outputs, labels, steps, halted)
        lm_loss = (self.loss_fn(outputs["logits"], labels) / labelled.clamp_min(1).unsqueeze(-1)).sum()
        q_halt_loss = F.binary_cross_entropy_with_logits(
            outputs["q_halt_logits"], exact.to(outputs["q_halt_logits"].dtype), reduction="sum"
        )
        metrics |= {"lm_loss": lm_loss.detach(), "q_halt_loss": q_halt_loss.detach()}
        q_loss = q_halt_loss
        if "target_q_continue" in outputs:
            q_continue_loss = F.binary_cross_entropy_with_logits(
                outputs["q_continue_logits"], outputs["target_q_continue"], reduction="sum"
            )
            metrics["q_continue_loss"] = q_continue_loss.detach()
            q_loss = q_loss + q_continue_loss
        return lm_loss + 0.5 * q_loss, metrics


@torch.no_grad()
def measure(
    outputs: dict[str, Tensor], labels: Tensor, steps: Tensor, halted: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Compare the model's outputs in one step with labels (B, S); steps and halted as in `ACTLossHead.score`.

    -> sums over the halted sequences with a label, which sequences are exactly right (B,) bool, how many of their
    tokens have a label (B,).
    """
    has_label = labels != IGNORE_LABEL_ID
    labelled = has_label.sum(-1)
    correct = ((outputs["logits"].argmax(-1) == labels) & has_label).sum(-1)
    exact = correct == labelled
    counted = halted & (labelled > 0)
    accuracy = correct.float() / labelled.clamp_min(1)
    metrics = {
        "count": counted.sum(),
        "accuracy": torch.where(counted, accuracy, 0).sum(),
        "exact_accuracy": (counted & exact).sum(),
        "q_halt_accuracy": (counted & ((outputs["q_halt_logits"] >= 0) == exact)).sum(),
        "steps": torch.where(counted, steps, 0).sum(),
    }
    return metrics, exact, labelled
