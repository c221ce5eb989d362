"""The typed configuration of a run, and how it is read from the command line.

Unknown keys are errors at every level. What concerns several keys is checked here too, before anything is built.
"""

import difflib
import re
import sys
from typing import Literal, get_args

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from errors import UserError, describe_validation_error
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1, HRMArchitecture
from models.losses import LOSSES, ACTLossHead
from training.distributed import DEVICES

MODELS = {"hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1": HierarchicalReasoningModel_ACTV1}
HEADS = {"losses@ACTLossHead": ACTLossHead}
CONFIG_GROUPS = ("arch", "experiment")
SAVABLE_OUTPUTS = ("inputs", "labels", "puzzle_identifiers", "logits", "q_halt_logits", "q_continue_logits")


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_a_bool(cls, value, info: ValidationInfo):
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and "off" in get_args(annotation):
            return "on" if value else "off"  # YAML takes both words for booleans
        if isinstance(value, bool) and annotation not in (bool, bool | str):
            raise ValueError("Input should not be true or false")
        return value


class LossConfig(StrictModel):
    name: Literal[tuple(HEADS)]
    loss_type: Literal[tuple(LOSSES)]


class ArchConfig(StrictModel, HRMArchitecture):
    name: Literal[tuple(MODELS)]
    loss: LossConfig

    def build(self, *, batch_size: int, seq_len: int, vocab_size: int, num_puzzle_identifiers: int) -> ACTLossHead:
        """The model in its loss head, on the current default device; `batch_size` is one rank's."""
        model = MODELS[self.name](
            self.model_dump(exclude={"name", "loss"})
            | dict(
                batch_size=batch_size,
                seq_len=seq_len,
                vocab_size=vocab_size,
                num_puzzle_identifiers=num_puzzle_identifiers,
            )
        )
        return HEADS[self.loss.name](model, self.loss.loss_type)


class EarlyStop(StrictModel):
    """When to end before the epochs are used up, see training/early_stop.py; null: never."""

    patience: int | None = Field(default=None, ge=1)  # evaluations in a row without a better eval/exact_accuracy
    train_exact_accuracy: float | None = Field(default=None, gt=0, le=1)  # over the last steps


class PretrainConfig(StrictModel):
    arch: ArchConfig
    data_path: str  # a dataset folder, see dataset/format.py

    global_batch_size: int = Field(ge=1)  # over all ranks
    epochs: int = Field(ge=1)  # visits of every group
    eval_interval: int | None = Field(default=None, ge=1)  # in epochs; null: once, at the end

    lr: float = Field(ge=0)
    lr_min_ratio: float = Field(ge=0, le=1)  # the cosine ends at this share of lr
    lr_warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)

    puzzle_emb_lr: float = Field(ge=0)
    puzzle_emb_weight_decay: float = Field(ge=0)

    ema_decay: float | None = Field(default=None, ge=0, lt=1)  # average the weights, and evaluate the average
    freeze: Literal["weights"] | None = None  # train the puzzle embeddings only
    early_stop: EarlyStop = EarlyStop()

    seed: int = Field(default=0, ge=0)
    device: Literal[DEVICES] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # see training/compilation.py
    cuda_graph: Literal["auto", "on", "off"] = "auto"  # see training/cuda_graph.py
    log_interval: int = Field(default=1, ge=1)  # steps between looks at the metrics; all are kept
    checkpoint_every_eval: bool = False  # else only the best so far and the last
    eval_save_outputs: list[Literal[SAVABLE_OUTPUTS]] = []
    eval_split: Literal["test", "val"] = "test"  # during training; the whole test split is evaluated at the end anyway
    eval_batch_size: int | None = Field(default=None, ge=1)  # over all ranks; null: the run's, on CUDA more
    eval_max_examples: int | None = Field(default=None, ge=1)  # during training: a seeded subset
    load_checkpoint: str | None = None  # start from these weights
    load_checkpoint_puzzle_emb: Literal["error", "mean", "zero"] = "error"  # where its table has another number of rows

    resume: bool | str = (
        False  # true: the newest state in checkpoint_path, or a fresh start; else a state or run folder
    )
    checkpoint_interval: int | None = Field(default=None, ge=1)  # steps between training states, beside evaluations
    checkpoint_minutes: float | None = Field(default=None, gt=0)  # the same by the clock
    keep_last: int = Field(default=2, ge=1)  # training states; model checkpoints are all kept
    max_minutes: float | None = Field(default=None, gt=0)  # save and stop in good order then

    project_name: str | None = None  # of W&B, and the folder of its runs
    run_name: str | None = None
    checkpoint_path: str | None = None  # the run folder

    @model_validator(mode="after")
    def _keys_fit_together(self):
        if self.eval_interval is not None and self.epochs % self.eval_interval:
            raise ValueError(
                f"eval_interval={self.eval_interval} does not divide epochs={self.epochs}; choose a divisor of it"
            )
        if self.freeze and not self.arch.puzzle_emb_ndim:
            raise ValueError("freeze=weights trains puzzle embeddings, but arch.puzzle_emb_ndim=0: there are none")
        if self.freeze and self.ema_decay is not None:
            raise ValueError("freeze=weights leaves nothing for ema_decay to average; leave one of them out")
        if self.resume is True and self.checkpoint_path is None:
            raise ValueError("resume=true needs checkpoint_path, the run folder; give both from the first start on")
        return self

    def check_ranks(self, world_size: int) -> None:
        if self.global_batch_size % world_size:
            raise UserError(
                f"global_batch_size={self.global_batch_size} is not divisible by the {world_size} ranks; "
                f"choose a multiple of {world_size}"
            )
        if self.eval_batch_size is not None and self.eval_batch_size % world_size:
            raise UserError(
                f"eval_batch_size={self.eval_batch_size} is not divisible by the {world_size} ranks; "
                f"choose a multiple of {world_size}"
            )


def validate(model: type[BaseModel], values: dict) -> BaseModel:
    """`model(**values)`, or a `UserError` that names each key and, for an unknown one, the nearest known."""
    try:
        return model(**values)
    except ValidationError as error:
        unknown = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "extra_forbidden"]
        if unknown:
            raise UserError("; ".join(_unknown_key(key, model) for key in unknown)) from None
        raise UserError(describe_validation_error(error, str)) from None


def _unknown_key(key: str, model: type[BaseModel]) -> str:
    near = difflib.get_close_matches(key, _keys(model), n=1)
    return f"unknown config key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "; see training/config.py")


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + (field.alias or name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
    return keys


def from_hydra(cfg: DictConfig) -> PretrainConfig:
    return validate(PretrainConfig, OmegaConf.to_container(cfg, resolve=True))


def load_config(path: str) -> PretrainConfig:
    """Read an `all_config.yaml`, the original's included."""
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise UserError("it is not a mapping")
        return from_hydra(config)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a checkpoint lies in its run folder, beside all_config.yaml") from None
    except (UserError, yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not the config of a run: {error}") from None


def from_cli(model: type[BaseModel], args: list[str], usage: str) -> BaseModel:
    """`model` from arguments of the form `key=value`, for commands without Hydra; `--help` prints `usage`."""
    if not args or {"-h", "--help"} & set(args):
        print(usage)
        raise SystemExit(0 if args else 2)
    wrong = [arg for arg in args if "=" not in arg]
    if wrong:
        raise UserError(f"'{wrong[0]}' is not of the form key=value (see --help)")
    try:
        values = OmegaConf.to_container(OmegaConf.from_cli(args))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot read the arguments: {error}") from None
    return validate(model, values)


def accept_plain_overrides() -> None:
    """Let `key=value` and `+key=value` both mean "set it": the typed config decides which keys exist.

    Hydra alone would ask for `+` where a key is not in the YAML, and drop no word about misspelt ones given with it.
    Choices from a config group keep Hydra's meaning, with or without the `+` of `+experiment=`.
    """
    for i, arg in enumerate(sys.argv[1:], start=1):
        match = re.match(r"\+{0,2}([A-Za-z_][\w.]*)=", arg)
        if not match or match[1].split(".")[0] == "hydra":
            continue
        prefix = {"arch": "", "experiment": "+"}.get(match[1], "++")
        sys.argv[i] = prefix + arg.lstrip("+")


def hydra_error(error: HydraException | OmegaConfBaseException) -> UserError:
    """Hydra's several lines as one."""
    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read the override '{error.override.lstrip('+')}'; quote lists and blanks")
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return UserError(re.sub(r"\s*(Config search path|Set the environment variable|\[?provider=).*", "", text))
