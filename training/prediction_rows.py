"""Rows of predictions, in whichever format they were saved, and what every reader of them checks."""

import logging
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from torch import Tensor

from dataset.format import IGNORE_LABEL_ID
from errors import UserError

log = logging.getLogger(__name__)

AGAIN = "run evaluate.py again"


@dataclass
class PredictionRows:
    """Some examples and what was predicted for them, without padding."""

    inputs: np.ndarray  # (n, seq_len)
    labels: np.ndarray | None  # (n, seq_len), ignored = -100; None if a torch dictionary holds none
    puzzle_identifiers: np.ndarray  # (n,)
    answers: np.ndarray  # (n, seq_len)
    q_halt_logits: np.ndarray  # (n,) float32
    q_continue_logits: np.ndarray | None  # (n,) float32
    steps: np.ndarray | None = None  # (n,) reasoning steps taken; this and the next where they were asked for
    answers_by_step: np.ndarray | None = None  # (n, max_steps, seq_len)
    examples: np.ndarray | None = None  # (n,) places in the split; a torch dictionary does not say them

    def only(self, numbers: np.ndarray) -> "PredictionRows":
        """The rows where `numbers` (n,) is true."""
        if numbers.all():
            return self
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return PredictionRows(**{name: part if part is None else part[numbers] for name, part in parts.items()})


def exactly_right(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Answers and labels (…, cells), ignored -100, broadcast -> (…): there are labelled cells, and all are right."""
    labelled = labels != IGNORE_LABEL_ID
    return ((answers == labels) | ~labelled).all(axis=-1) & labelled.any(axis=-1)


def check_tokens(tokens: np.ndarray | Tensor, vocab_size: int, path: Path, field: str, lowest: int = 0) -> None:
    if len(tokens) and not lowest <= (least := int(tokens.min())) <= (most := int(tokens.max())) < vocab_size:
        wrong = least if least < lowest else most
        raise UserError(f"{path} is damaged: {field} holds {wrong}, outside 0..{vocab_size - 1}; {AGAIN}")


def warn_of_no_numbers(path: Path, passed: int, total: int) -> None:
    if passed:
        log.warning("passing over %d of %d predictions that are no numbers (NaN or infinite): %s", passed, total, path)
