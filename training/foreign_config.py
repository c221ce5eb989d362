"""An `all_config.yaml` as the repositories of HRM, TRM and URM write it, in this repository's keys.

What is in `arch` decides what the network computes: each of its keys is one of ours, is translated, or is named here as
without effect; any other is refused. The rest says how the model was trained. Of that, what this repository has too is
read; what is known to concern their training loops is passed over, and so is anything else, with a warning. A key whose
value is null counts as left out, in `arch` too: it was not used.
"""

import logging
from collections.abc import Collection
from typing import Any

from errors import UserError, some_of
from models.act import find_architecture

log = logging.getLogger(__name__)

HRM = "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"
TRM, URM = "trm@TinyRecursiveModel", "urm@UniversalReasoningModel"
ARCHITECTURES = {
    "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1": TRM,
    "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1": HRM,  # TRM's copy
    "urm.urm@URM": URM,
    "recursive_reasoning.urm@URM": URM,
}
# What their code takes for an option that a file leaves out, where ours would take something else
UNSAID = {TRM: {"puzzle_emb_len": 16}}
MOST_NAMED = 8  # keys in a message
READ = (
    "arch", "data_path", "global_batch_size", "epochs", "eval_interval", "lr", "lr_min_ratio", "lr_warmup_steps",
    "weight_decay", "beta1", "beta2", "puzzle_emb_lr", "puzzle_emb_weight_decay", "seed", "checkpoint_every_eval",
    "project_name", "run_name", "checkpoint_path",
)  # fmt: skip
TRANSLATED = ("data_paths", "ema", "ema_rate")
TRAINING_ONLY = (
    "data_paths_test", "evaluators", "min_eval_interval", "eval_save_outputs", "freeze_weights", "load_checkpoint",
)  # fmt: skip
# Without effect on what is computed: TRM has one network, and never had a Q(continue); HRM's copy has neither option;
# dropout is for training
WITHOUT_EFFECT = {
    TRM: ("H_layers", "no_ACT_continue"),
    HRM: ("puzzle_emb_len", "no_ACT_continue"),
    URM: ("attn_dropout", "mlp_dropout"),
}


def is_foreign(values: dict[str, Any]) -> bool:
    """Whether another repository wrote this: by the keys, or by the architecture's name, though HRM's is ours too."""
    name = _name(values.get("arch"))
    return "data_paths" in values or name in ARCHITECTURES or (name == HRM and "device" not in values)


def _name(arch: Any) -> str | None:
    name = arch.get("name") if isinstance(arch, dict) else None
    return name if isinstance(name, str) else None


def datasets_of(values: dict[str, Any]) -> list:
    """The folders that TRM's repository trained on: their puzzles have a row each in one table of embeddings."""
    paths = values.get("data_paths")
    return paths if isinstance(paths, list) else []


def in_our_keys(values: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The same run in the keys of `PretrainConfig`, which are `known`; of several datasets it is the first.

    Raises `UserError` for a key of `arch` that is not known. What else is wrong is left to whoever checks all keys.
    """
    arch = values.get("arch")
    read = known if _name(arch) == HRM else READ
    ours = {key: value for key, value in values.items() if key in read and value is not None}
    passed_over = [key for key in values if key not in (*read, *TRANSLATED, *TRAINING_ONLY)]
    if datasets := datasets_of(values):
        ours["data_path"] = datasets[0]
    if len(datasets) > 1:
        log.warning("trained on %d datasets: %.200r is taken for its dataset", len(datasets), datasets[0])
    if values.get("ema") and values.get("ema_rate") is not None:
        ours["ema_decay"] = values["ema_rate"]
    loss = arch.get("loss") if isinstance(arch, dict) else None
    if isinstance(loss, dict):
        passed_over += [f"arch.loss.{key}" for key in loss if key not in ("name", "loss_type")]
        ours["arch"] = arch = arch | {"loss": {key: loss[key] for key in ("name", "loss_type") if key in loss}}
    if _name(arch) is not None:
        ours["arch"] = _arch_in_our_keys(arch)
    if passed_over:
        log.warning("passed over, since it only says how the model was trained: %s", _named(passed_over))
    return ours


def _arch_in_our_keys(arch: dict[str, Any]) -> dict[str, Any]:
    name = ARCHITECTURES.get(arch["name"], arch["name"])
    without_effect = WITHOUT_EFFECT.get(name, ())
    unsaid = UNSAID.get(name, {}) if arch["name"] in ARCHITECTURES else {}
    arch = unsaid | {key: value for key, value in arch.items() if key not in without_effect and value is not None}
    if name == URM and "loops" in arch:
        arch["halt_max_steps"] = arch.pop("loops")
    if name == HRM and arch.get("mlp_t") is False:  # true would be another network, which is not here
        del arch["mlp_t"]
    if arch.get("forward_dtype") == "bfloat16":  # their default, which `auto` is on CUDA; a CPU is much slower with it
        arch["forward_dtype"] = "auto"
    if name in ARCHITECTURES.values():
        ours = {*find_architecture(name).Config.model_fields, "name", "loss"}
        if unknown := [key for key in arch if isinstance(key, str) and key not in ours]:
            raise UserError(
                f"unknown config key {_named([f'arch.{key}' for key in unknown])}: it may change what the network "
                f"computes, and {name} has no such option; take it out of the file if its value means off"
            )
    return arch | {"name": name}


def _named(keys: list) -> str:
    return some_of([f"{key!a:.60}" for key in keys], MOST_NAMED)
