"""An `all_config.yaml` as TRM's repository writes it, for TRM and for its copy of HRM, in this repository's keys.

It has keys that HRM's has not: several datasets, evaluators, and an average of the weights. Those that only concern its
training loop are left out, by name; any other unknown key is refused as always.
"""

from typing import Any

ARCHITECTURES = {
    "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1": "trm@TinyRecursiveModel",
    "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
}
TRAINING_ONLY = (
    "data_paths_test", "evaluators", "min_eval_interval", "eval_save_outputs", "freeze_weights", "load_checkpoint",
)  # fmt: skip
# Without effect on what is computed: TRM has one network, and never had a Q(continue); HRM's copy has neither option
WITHOUT_EFFECT = {
    "trm@TinyRecursiveModel": ("H_layers", "no_ACT_continue"),
    "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1": ("puzzle_emb_len", "no_ACT_continue"),
}


def is_of_trms_repository(values: dict[str, Any]) -> bool:
    arch = values.get("arch")
    return isinstance(arch, dict) and arch.get("name") in ARCHITECTURES


def in_our_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The same run in the keys of `PretrainConfig`; of several datasets it is the first."""
    values = {key: value for key, value in values.items() if key not in TRAINING_ONLY}
    datasets = values.pop("data_paths", None)
    if isinstance(datasets, list) and datasets:
        values["data_path"] = datasets[0]
    averaged, rate = values.pop("ema", False), values.pop("ema_rate", None)
    return values | {"ema_decay": rate if averaged else None, "arch": _arch_in_our_keys(values["arch"])}


def _arch_in_our_keys(arch: dict[str, Any]) -> dict[str, Any]:
    name = ARCHITECTURES[arch["name"]]
    arch = {key: value for key, value in arch.items() if key not in WITHOUT_EFFECT[name]} | {"name": name}
    if name.startswith("hrm") and arch.get("mlp_t") is False:  # true would be another network, which is not here
        del arch["mlp_t"]
    return arch
