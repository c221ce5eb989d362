"""Build a page in which a trained Sudoku model thinks in the browser: one file that needs no network.

    python scripts/build_live_page.py checkpoint=<run>/step_<n> out=hrm_live.html

It takes small models of 4×4, 6×6 and 9×9 Sudokus: HRM, TRM (attention or MLP), URM and the recurrent Transformer, with
fixed starts. The page holds the weights in 16 bits each, some puzzles of the test split, and how many of that split the
model solves with these rounded weights, which is measured here. The sources of the page are in scripts/live/;
docs/live-page.md says what it shows and how it is checked.
"""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script

import training.threads  # noqa: E402, F401, before torch loads

# isort: split

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pydantic import Field  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dataset.format import PuzzleDatasetMetadata  # noqa: E402
from errors import UserError, one_line_errors  # noqa: E402
from evaluators.solution import dataset_at_hand  # noqa: E402
from files import check_output, write_atomically  # noqa: E402
from models.act import ACTModel, InnerNetwork  # noqa: E402
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1  # noqa: E402
from models.layers import Block, SwiGLU  # noqa: E402
from models.losses import ACTLossHead  # noqa: E402
from models.transformer import RecurrentTransformer  # noqa: E402
from models.trm import MixerBlock, TinyRecursiveModel  # noqa: E402
from models.urm import ConvSwiGLU, UniversalReasoningModel  # noqa: E402
from puzzle_dataset import PuzzleDataset  # noqa: E402
from puzzles.draw import DARK, PALETTE  # noqa: E402
from puzzles.sudoku import Sudoku  # noqa: E402
from training.checkpoints import load_model, open_run  # noqa: E402
from training.config import PretrainConfig  # noqa: E402
from training.data import open_to_answer  # noqa: E402
from training.options import StrictModel, from_cli  # noqa: E402
from training.reasoning import Reasoner  # noqa: E402

SOURCES = Path(__file__).parent / "live"
START = b"<!doctype html>\n<!-- Built by scripts/build_live_page.py"
MAX_PARAMETERS = 6_000_000  # 12 MB, 16 MB as base64
LARGEST = 2**15 - 1
BATCH_SIZE = 64
COLOURS = ("paper", "line", "box_line", "clue", "answer", "changed", "wrong", "right")  # of puzzles/draw.py
LINKS = {"stablemax_cross_entropy": "stablemax", "softmax_cross_entropy": "softmax"}
QUICK, REVISED, WRONG = "It sees these at once", "It has second thoughts", "It gets these wrong"
SHARES = {REVISED: 0.5, QUICK: 0.3, WRONG: 0.2}  # of the puzzles that the page offers


class LiveConfig(StrictModel):
    checkpoint: str = Field(description="a step_<n> in its run folder; or the folder: its best, else its last")
    out: str = Field(description="the page, an .html file")
    data_path: str | None = Field(default=None, description="the run's dataset, if it has moved")
    split: str = Field(default="test", description="split that puzzles and accuracy are from")
    examples: int = Field(default=1000, ge=1, le=10**6, description="puzzles to measure the accuracy on, at most")
    puzzles: int = Field(default=30, ge=1, le=1000, description="puzzles that the page offers")


# ---------- What a reasoning step is ----------


def hrm(config: Any) -> dict[str, Any]:
    low, high = update("z_L", "L_level.layers", "z_H", "x"), update("z_H", "H_level.layers", "z_L")
    return program({"z_H": "H_init", "z_L": "L_init"}, ([low] * config.L_cycles + [high]) * config.H_cycles)


def trm(config: Any) -> dict[str, Any]:
    latent, answer = update("z_L", "L_level.layers", "z_H", "x"), update("z_H", "L_level.layers", "z_L")
    return program({"z_H": "H_init", "z_L": "L_init"}, ([latent] * config.L_cycles + [answer]) * config.H_cycles)


def urm(config: Any) -> dict[str, Any]:
    return program({"hidden": "init_hidden"}, [update("hidden", "layers", "x")] * config.L_cycles * config.H_cycles)


def transformer(config: Any) -> dict[str, Any]:
    return program({"z_H": "H_init"}, [update("z_H", "H_level.layers", "x")])


def update(state: str, stack: str, *adds: str) -> dict[str, Any]:
    """state ← stack(state + adds), x being the embedded puzzle."""
    return {"state": state, "stack": stack, "adds": adds}


def program(starts: dict[str, str], updates: list[dict[str, Any]]) -> dict[str, Any]:
    """`starts` maps states to the tensors that they start from; the first of them is the answer's."""
    return {"starts": starts, "answer": next(iter(starts)), "updates": updates}


# Title, and what a step of it is
PROGRAMS: dict[type[ACTModel], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    HierarchicalReasoningModel_ACTV1: ("Hierarchical Reasoning Model (HRM)", hrm),
    TinyRecursiveModel: ("Tiny Recursive Model (TRM)", trm),
    UniversalReasoningModel: ("Universal Reasoning Model (URM)", urm),
    RecurrentTransformer: ("recurrent Transformer", transformer),
}


def network_of(model: ACTModel, loss_type: str) -> tuple[dict[str, Any], bytes]:
    """-> what scripts/live/network.js needs to know, and the weights, one tensor after the other.

    Raises `UserError` for a model that the page cannot run.
    """
    config, inner, data = model.config, model.inner, model.data
    _, describe = PROGRAMS.get(type(model), (None, None))
    if describe is None:
        known = ", ".join(title for title, _ in PROGRAMS.values())
        raise UserError(f"the page cannot run {type(model).__name__}; it runs {known}")
    if inner.draws:
        raise UserError(
            "the page runs models with fixed starts only; this one draws them, or noise (state_init, noise)"
        )
    described = describe(config)
    stacks = {
        name: [block_of(block) for block in inner.get_submodule(name)]
        for name in {update["stack"] for update in described["updates"]}
    }
    head_size = config.hidden_size // config.num_heads
    attends = not all(block["mixes"] for blocks in stacks.values() for block in blocks)
    if config.hidden_size % 8 or (attends and head_size % 8):
        raise UserError(
            f"the page needs a hidden_size and a head size in multiples of 8, not {config.hidden_size} and {head_size}"
        )
    tensors, weights = packed(tensors_of(inner, [*described["starts"].values()]))
    network = {
        "positions": inner.positions,
        "prefix": inner.positions - data.seq_len,
        "cells": data.seq_len,
        "vocab": data.vocab_size,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "eps": config.rms_norm_eps,
        "rope": config.rope_theta if config.pos_encodings == "rope" and attends else None,
        "learned": config.pos_encodings == "learned",
        "damping": getattr(config, "damping", 1),
        "haltsAbove": model.halts_above,
        "steps": config.halt_max_steps,
        "link": LINKS[loss_type],
        **described,
        "stacks": stacks,
        "tensors": tensors,
    }
    return network, weights


def block_of(block: nn.Module) -> dict[str, bool]:
    """Whether a block mixes positions by a SwiGLU in place of attention, and whether its SwiGLU has a convolution."""
    assert type(block) in (Block, MixerBlock) and type(block.mlp) in (SwiGLU, ConvSwiGLU), "known to network.js"
    return {"mixes": type(block) is MixerBlock, "convolves": type(block.mlp) is ConvSwiGLU}


def tensors_of(inner: InnerNetwork, starts: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of what the network computes with."""
    yield from inner.named_parameters()
    yield from ((name, inner.get_buffer(name)) for name in starts)
    if inner.puzzle_emb is not None:  # every Sudoku is the blank puzzle: one row of the table is all
        row = inner.puzzle_emb.weights[0]
        room = inner.puzzle_emb_len * inner.config.hidden_size
        yield "prefix", nn.functional.pad(row, (0, room - len(row)))


def packed(tensors: Iterator[tuple[str, Tensor]]) -> tuple[list[dict[str, Any]], bytes]:
    """-> name, place (in bytes) and shape of each tensor; and of each its scales and its numbers, little-endian."""
    places, parts, at = [], [], 0
    for name, tensor in tensors:
        scales, numbers = in_16_bits(tensor)
        places.append({"name": name, "at": at, "shape": list(tensor.shape)})
        parts += [scales.numpy().astype("<f4").tobytes(), numbers.numpy().astype("<i2").tobytes()]
        at += sum(map(len, parts[-2:]))
    return places, b"".join(parts)


def in_16_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """-> a scale for each row, float32, and numbers (rows, …) of 16 bits of which they are multiples.

    A row is what one output is made of, and a vector is one. A row's weights have about the same size, so this is
    several times closer to them than float16 or bfloat16, which spend bits on a range that is not needed.
    """
    rows = tensor.detach().reshape(1 if tensor.ndim == 1 else len(tensor), -1).double()
    scales = (rows.abs().amax(1) / LARGEST).float()
    scales = torch.where(scales > 0, scales, 1)
    return scales, (rows / scales.double()[:, None]).round().clamp(-LARGEST, LARGEST).short()


def round_weights(head: ACTLossHead) -> None:
    """Give every weight the value that the page has. Raises `UserError` for a model that is too large for a page."""
    state = head.state_dict()
    count = sum(tensor.numel() for tensor in state.values())
    if count > MAX_PARAMETERS:
        raise UserError(f"the model has {count:,} numbers, and a page holds {MAX_PARAMETERS:,}; use a smaller model")
    for name, tensor in state.items():
        scales, numbers = in_16_bits(tensor)
        state[name] = (numbers.double() * scales.double()[:, None]).float().reshape(tensor.shape)
    head.load_state_dict(state)


# ---------- Puzzles, and how it does on them ----------


@dataclass
class Tried:
    """Puzzles (n, cells) that the model was given, and how it went."""

    inputs: np.ndarray
    steps: np.ndarray  # (n,): after how many it halts, else all of them
    halts: np.ndarray  # (n,) bool: whether it wanted to, in any of them
    right: np.ndarray  # (n,) bool: whether its answer is right there
    right_at_end: np.ndarray  # (n,) bool: whether it is after all steps
    revisions: np.ndarray  # (n,): in how many steps until there it changed its answer

    def accuracy(self) -> dict[str, Any]:
        return {
            "puzzles": len(self.inputs),
            "right": int(self.right.sum()),
            "rightAtEnd": int(self.right_at_end.sum()),
            "steps": round(float(self.steps.mean()), 2),
        }


def try_out(head: ACTLossHead, dataset: PuzzleDataset, kind: Sudoku) -> Tried:
    """Give the model all puzzles of a split."""
    reasoner, parts = Reasoner(head.model), []
    for _, batch, real in dataset:
        done = reasoner.run(batch, real, by_step=True)
        inputs, answers = batch["inputs"][:real].numpy(), done.answers_by_step[:real].numpy()
        q_halt, q_continue = (done.at_halt.outputs[f"q_{name}_logits"][:real] for name in ("halt", "continue"))
        steps = done.at_halt.steps[:real].numpy()
        changed = (answers[:, 1:] != answers[:, :-1]).any(-1)  # (n, steps - 1)
        until = np.arange(2, answers.shape[1] + 1) <= steps[:, None]
        right, right_at_end = (kind.valid(inputs, answers[np.arange(real), at]) for at in (steps - 1, -1))
        halts = head.model.wants_to_halt(q_halt, q_continue).numpy()
        parts.append((inputs, steps, halts, right, right_at_end, (changed & until).sum(1)))
    return Tried(*map(np.concatenate, zip(*parts, strict=True)))


def chosen(tried: Tried, count: int, kind: Sudoku) -> list[dict[str, Any]]:
    """Up to `count` of the puzzles, in groups by how it went; first those that it halts on, after most revisions."""
    group = np.where(~tried.right, WRONG, np.where(tried.revisions > 1, REVISED, QUICK))
    order = np.lexsort((-tried.revisions, ~tried.halts))
    groups = {name: order[group[order] == name] for name in SHARES}
    sizes = {name: min(len(rows), round(count * SHARES[name])) for name, rows in groups.items()}
    for name in (REVISED, QUICK, WRONG):  # takes the room of a group that has few
        sizes[name] = min(len(groups[name]), sizes[name] + count - sum(sizes.values()))
    return [
        {
            "group": name,
            "text": kind.plain(tried.inputs[row]),
            "steps": int(tried.steps[row]) if tried.halts[row] else None,
        }
        for name, rows in groups.items()
        for row in rows[: sizes[name]]
    ]


# ---------- The page ----------


def read_model(
    checkpoint: Path, run: PretrainConfig, data_path: Path
) -> tuple[ACTLossHead, Sudoku, PuzzleDatasetMetadata]:
    """-> the model in float32, the kind of its puzzles, and what the dataset says of itself."""
    metadata, kind = dataset_at_hand(data_path)
    if kind is None:
        raise UserError(f"the run's dataset is not in {data_path}; set data_path to it")
    if not isinstance(kind, Sudoku):
        raise UserError(f"{checkpoint} was trained on {kind.title}s; the page is for Sudokus")
    head = load_model(checkpoint, run, metadata, batch_size=BATCH_SIZE, device=torch.device("cpu"))
    return head, kind, metadata


def build(config: LiveConfig) -> bytes:
    checkpoint, run = open_run(config.checkpoint, config.data_path)
    head, kind, metadata = read_model(checkpoint, run, Path(config.data_path or run.data_path))
    round_weights(head)
    network, weights = network_of(head.model, run.arch.loss.loss_type)
    dataset = open_to_answer(
        run, config.split, data_path=config.data_path, batch_size=BATCH_SIZE, max_examples=config.examples
    )
    tried = try_out(head, dataset, kind)
    boxes = kind.look.boxes
    page = {
        "size": kind.size,
        "box": list(boxes),
        "title": kind.title,
        "network": network,
        "model": {
            "name": PROGRAMS[type(head.model)][0],
            "checkpoint": f"{checkpoint.resolve().parent.name}/{checkpoint.name}",
            "parameters": sum(parameter.numel() for parameter in head.parameters()),
            "blocks": sum(map(len, network["stacks"].values())),
            "trained": metadata.total_groups,
            "accuracy": tried.accuracy(),
        },
        "puzzles": chosen(tried, config.puzzles, kind),
    }
    return assemble(page, weights)


def assemble(page: dict[str, Any], weights: bytes) -> bytes:
    """The template with its styles, scripts and data in place."""
    data = json.dumps(page, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")  # ends no element
    names = ("page.css", "kernels.js", "network.js", "sudoku.js", "page.js")
    parts = {name: (SOURCES / name).read_text(encoding="utf-8").rstrip() for name in names}
    colours = "".join(f"--{name}: light-dark({PALETTE[name]}, {(PALETTE | DARK)[name]}); " for name in COLOURS)
    parts |= {"palette": f":root {{ {colours}}}", "data": data, "weights": base64.b64encode(weights).decode()}
    text = (SOURCES / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        before, mark, after = text.partition("{{" + name + "}}")
        assert mark and "</script" not in part, name
        text = before + part + after
    return text.encode()


def main() -> None:
    with one_line_errors():
        config = from_cli(LiveConfig, sys.argv[1:], __doc__)
        out = Path(config.out)
        check_output(out, "out", ".html", START)
        page = build(config)
        write_atomically(out, lambda file: file.write(page))
        print(f"{out}: {len(page) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
