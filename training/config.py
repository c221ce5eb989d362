"""The typed configuration of a run.

Unknown keys are errors at every level. Whether keys fit together is checked here too, before anything is built.
"""

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    Field,
    PrivateAttr,
    SerializeAsAny,
    create_model,
    field_validator,
    model_validator,
)

from dataset.format import PuzzleDatasetMetadata
from errors import UserError
from files import read_yaml
from models.act import ACTModel, find_architecture
from models.losses import LOSSES, ACTLossHead
from training.distributed import DEVICES
from training.foreign_config import datasets_of, in_our_keys, is_foreign
from training.memory import CheckedAllocations
from training.optimizers import OPTIMIZERS
from training.options import UNFIT, StrictModel, validate

log = logging.getLogger(__name__)

HEADS = {"losses@ACTLossHead": ACTLossHead}
SAVABLE_OUTPUTS = ("inputs", "labels", "puzzle_identifiers", "logits", "q_halt_logits", "q_continue_logits")

# Largest count: of sequences, steps, epochs, also their products fit 64 bits
MOST = 2**31 - 1

# Keys of `arch` that earlier versions wrote and that no longer exist. None of them did anything at its default.
RETIRED_ARCH_KEYS = ("q_target_interval",)
# Values that no longer exist: a run that trains with one cannot go on. -> what answers the same, or nearest
RETIRED_ARCH_VALUES = {("q_target", "every_n"): "every_step", ("forward_dtype", "float16"): "auto"}


class LossConfig(StrictModel):
    name: Literal[tuple(HEADS)] = Field(description="the loss head; there is one")
    loss_type: Literal[tuple(LOSSES)] = Field(description="loss of a token")


class ArchConfig(StrictModel):
    """An architecture by its name; `arch_type` adds the keys of its `Config` to the same flat mapping."""

    name: str = Field(description="<module>@<class> below models/")
    loss: LossConfig

    @classmethod
    def type_for(cls, values: Any) -> type["ArchConfig"]:
        return type_of_arch(values)

    @property
    def model_class(self) -> type[ACTModel]:
        return find_architecture(self.name)

    def build(self, *, batch_size: int, seq_len: int, vocab_size: int, num_puzzle_identifiers: int) -> ACTLossHead:
        """The model in its loss head, on the current default device; `batch_size` is one rank's.

        Raises `UserError` for a model that needs more memory than there is.
        """
        own = self.model_dump(exclude=set(ArchConfig.model_fields))
        shape = dict(
            batch_size=batch_size,
            seq_len=seq_len,
            vocab_size=vocab_size,
            num_puzzle_identifiers=num_puzzle_identifiers,
        )

        def build() -> ACTLossHead:
            return HEADS[self.loss.name](self.model_class(own | shape), self.loss.loss_type)

        what = f"the model for {', '.join(f'{key}={value}' for key, value in shape.items())}"
        with CheckedAllocations(torch.empty(0).device, build, what):
            return build()

    def build_for(self, metadata: PuzzleDatasetMetadata, *, batch_size: int, device: torch.device) -> ACTLossHead:
        """Build the model for a dataset, on a device."""
        with torch.device(device):
            return self.build(
                batch_size=batch_size,
                seq_len=metadata.seq_len,
                vocab_size=metadata.vocab_size,
                num_puzzle_identifiers=metadata.num_puzzle_identifiers,
            )

    def __reduce__(self):
        """Pickle by name: the class is made at run time, and other ranks find it again by its name."""
        return arch_config, (self.model_dump(),)


@cache
def arch_type(name: str) -> type[ArchConfig]:
    """`ArchConfig` with the hyper-parameters of the architecture of this name."""
    return create_model("ArchConfig", __base__=(find_architecture(name).Config, ArchConfig))


def type_of_arch(values: Any) -> type[ArchConfig]:
    """The type for the `arch` of a config; plain `ArchConfig` if it names no architecture."""
    name = values.get("name") if isinstance(values, dict) else None
    return arch_type(name) if isinstance(name, str) else ArchConfig


def arch_config(values: dict[str, Any]) -> ArchConfig:
    """The typed `arch` of a config."""
    name = values.get("name")
    if not isinstance(name, str) or UNFIT.search(name):  # without it no other key would be known either
        raise ValueError(f"name={name!a}: it must be <module>@<class> below models/")
    return type_of_arch(values).model_validate(values)


class EarlyStop(StrictModel):
    """When to end before the epochs are used up (see training/stopping.py); null means never."""

    patience: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="end after this many evaluations in a row without a better eval/exact_accuracy",
    )
    train_exact_accuracy: float | None = Field(
        default=None, gt=0, le=1, description="end when this share of the last 100 steps' sequences is exactly right"
    )


class PretrainConfig(StrictModel):
    arch: SerializeAsAny[ArchConfig]
    data_path: str = Field(min_length=1, description="a dataset folder, see dataset/format.py")

    global_batch_size: int = Field(ge=1, le=MOST, description="sequences in a step, over all ranks")
    epochs: int = Field(ge=1, le=MOST, description="how often every group is visited")
    eval_interval: int | None = Field(
        default=None, ge=1, le=MOST, description="epochs between evaluations; null: evaluate once, at the end"
    )

    lr: float = Field(ge=0, le=1e100, description="learning rate of the weights, after the warm-up")
    lr_min_ratio: float = Field(ge=0, le=1, description="the cosine schedule ends at this share of lr")
    lr_warmup_steps: int = Field(ge=0, le=MOST, description="steps of linear warm-up")
    weight_decay: float = Field(ge=0, le=1e6, description="decoupled weight decay of the weights")
    optimizer: Literal[OPTIMIZERS] = Field(
        default="adam_atan2", description="of the weights; muon: for matrices, with adamw for all else"
    )
    beta1: float = Field(ge=0, lt=1, description="decay of the first moment, in adam_atan2 and adamw")
    beta2: float = Field(ge=0, lt=1, description="decay of the second moment, in adam_atan2 and adamw")

    puzzle_emb_lr: float = Field(ge=0, le=1e100, description="learning rate of the puzzle embeddings")
    puzzle_emb_weight_decay: float = Field(
        ge=0, le=1e6, description="decoupled weight decay of the puzzle embeddings in use"
    )

    ema_decay: float | None = Field(
        default=None, ge=0, lt=1, description="average the weights with this decay, and evaluate the average"
    )
    freeze: Literal["weights"] | None = Field(default=None, description="weights: train the puzzle embeddings only")
    early_stop: EarlyStop = EarlyStop()

    seed: int = Field(default=0, ge=0, le=2**62, description="seed of weights, sampling and exploration")
    device: Literal[DEVICES] = Field(default="auto", description="auto: CUDA, then MPS, then the CPU")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile; auto: on CUDA, and on a CPU where it pays within the run"
    )
    cuda_graph: Literal["auto", "on", "off"] = Field(
        default="auto", description="launch a step as one CUDA graph, with several ranks as two; auto: with one rank"
    )
    log_interval: int = Field(
        default=1, ge=1, le=MOST, description="steps between fetches of the metrics; all are kept"
    )
    checkpoint_every_eval: bool = Field(
        default=False, description="save a checkpoint at every evaluation; false: at the best so far and the last"
    )
    eval_save_outputs: list[Literal[SAVABLE_OUTPUTS]] = Field(
        default=[], description="save these with every checkpoint, in the original's format"
    )
    eval_split: Literal["test", "val"] = Field(
        default="test", description="evaluated during training; with val, the whole test split follows once, at the end"
    )
    eval_batch_size: int | None = Field(
        default=None, ge=1, le=MOST, description="for evaluation, over all ranks; null: global_batch_size, on CUDA more"
    )
    eval_max_examples: int | None = Field(
        default=None, ge=1, le=MOST, description="evaluate in training only a seeded subset of this size of each set"
    )
    load_checkpoint: str | None = Field(
        default=None, min_length=1, description="start from the weights of this checkpoint"
    )
    load_checkpoint_puzzle_emb: Literal["error", "mean", "zero"] = Field(
        default="error", description="error: refuse another number of puzzle embeddings; mean, zero: start from that"
    )

    resume: bool | str = Field(
        default=False,
        description="true: go on from the newest state in checkpoint_path, or start; or a state or run folder",
    )
    checkpoint_interval: int | None = Field(
        default=None, ge=1, le=MOST, description="steps between training states, besides those saved with checkpoints"
    )
    checkpoint_minutes: float | None = Field(default=None, gt=0, le=1e9, description="the same in minutes")
    keep_last: int = Field(
        default=2, ge=1, le=MOST, description="training states to keep; model checkpoints are all kept"
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="save and stop as on a signal before a step that would end later than this",
    )

    project_name: str | None = Field(default=None, min_length=1, description="W&B project, and the folder of its runs")
    run_name: str | None = Field(default=None, min_length=1, description="W&B name of the run, and its folder")
    checkpoint_path: str | None = Field(
        default=None, min_length=1, description="the run folder; null: checkpoints/<project_name>/<run_name>"
    )

    # Of a run of TRM's repository: a table of puzzle embeddings then has rows for the puzzles of all its datasets
    _datasets: int = PrivateAttr(default=1)

    @property
    def has_other_datasets(self) -> bool:
        """Whether the run was trained on others beside `data_path`, which only TRM's repository can."""
        return self._datasets > 1

    @property
    def epochs_per_pass(self) -> int:
        """How many epochs are drawn as one order of the training data, with an evaluation at its end."""
        return self.eval_interval or self.epochs

    @classmethod
    def retired(cls) -> tuple[str, ...]:
        return tuple(f"arch.{key}" for key in RETIRED_ARCH_KEYS)

    @field_validator("arch", mode="before")
    @classmethod
    def _of_its_architecture(cls, value):
        return arch_config(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _keys_fit_together(self):
        if self.eval_interval is not None and self.epochs % self.eval_interval:
            raise ValueError(
                f"eval_interval={self.eval_interval} does not divide epochs={self.epochs}; choose a divisor of it"
            )
        if self.freeze and getattr(self.arch, "puzzle_emb_ndim", None) == 0:
            raise ValueError("freeze=weights trains puzzle embeddings, but arch.puzzle_emb_ndim=0: there are none")
        if self.freeze and self.ema_decay is not None:
            raise ValueError("freeze=weights leaves nothing for ema_decay to average; leave one of them out")
        if self.cuda_graph == "on" and self.optimizer != "adam_atan2":
            raise ValueError(f"cuda_graph=on cannot hold optimizer={self.optimizer}; use cuda_graph=auto")
        if self.resume == "":
            raise ValueError("resume is empty; give true, or a state or run folder")
        if self.resume is True and self.checkpoint_path is None:
            raise ValueError("resume=true needs checkpoint_path, the run folder; give both from the first start on")
        return self

    def check_ranks(self, world_size: int) -> None:
        for key in ("global_batch_size", "eval_batch_size"):
            size = getattr(self, key)
            if size is not None and size % world_size:
                raise UserError(
                    f"{key}={size} is not divisible by the {world_size} ranks; choose a multiple of {world_size}"
                )


def from_hydra(cfg: DictConfig) -> PretrainConfig:
    return validate(PretrainConfig, resolved(cfg))


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The plain values of a config, `${…}` replaced by what it refers to. Raises `UserError` where that is nothing."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise hydra_error(error) from None


def hydra_error(error: Exception) -> UserError:
    """Several lines of Hydra, OmegaConf or a YAML reader as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
    text = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
    text = re.sub(r"\s*(Config search path|Set the environment variable|\[?provider=).*", "", text)
    return UserError(f"{place}: {text}" if place else text or type(error).__name__)


def load_config(path: str) -> PretrainConfig:
    """Read an `all_config.yaml`, the original's, TRM's, URM's and those of earlier versions included.

    It is data, perhaps somebody else's: a `${…}` in it is text like any other.
    """
    place, remedy = Path(path), "name a checkpoint in its run folder, whose all_config.yaml is whole"
    if not place.exists():
        raise UserError(f"{path} is missing; a checkpoint must be in its run folder, with all_config.yaml")
    try:
        values = read_yaml(place, remedy)
        if not isinstance(values, dict):
            raise UserError("it is not a mapping")
        if isinstance(values.get("arch"), dict):
            values["arch"] = without_retired(values["arch"])
        datasets = 1
        if is_foreign(values):
            datasets, values = len(datasets_of(values)), in_our_keys(values, PretrainConfig.model_fields)
        config = validate(PretrainConfig, values)
        config._datasets = datasets
        return config
    except UserError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise UserError(f"{path} is not the config of a run: {reason}") from None


def without_retired(arch: dict[str, Any]) -> dict[str, Any]:
    """Translate `arch` as an earlier version wrote it into today's keys; warn of what is computed differently now."""
    arch = {key: value for key, value in arch.items() if key not in RETIRED_ARCH_KEYS}
    for (key, value), successor in RETIRED_ARCH_VALUES.items():
        if arch.get(key) == value:
            arch[key] = successor
            if key != "q_target":  # which says how to train only; the rule of halting is the same
                log.warning("%s=%s is no longer supported: using %s", key, value, successor)
    return arch
