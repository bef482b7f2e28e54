"""Where modules went when the package got its rooms, so that a class path of the old layout gets the new one named."""

from __future__ import annotations

# New place -> the modules that went there under their own name; before, they stood at the head of their package.
_WENT = {
    "defenses.robust": "broken clip controller draws enresnet pgd_at spectral_penalty",
    "defenses.sparse": (
        "adabreg admm consumers hold_zeros l1_filter_prune lasso linbreg magnitude_prune masks network_slimming "
        "one_layer proxsgd rgsm rvscgd rvsm sparse_init sparse_optimizer splitting target_sparsity"
    ),
    "robustbench_sparse.config": "plan plugins published schema suites",
    "robustbench_sparse.engine": "fast",
    "robustbench_sparse.foundation": "devices environment errors files paired progress streams texts",
    "robustbench_sparse.judging": "judge relatives",
    "robustbench_sparse.reporting": "comparison curve history leaderboard plots reference tables",
    "robustbench_sparse.runs": "outcomes provenance seals targets variants",
    "robustbench_sparse.sparsity": "claims",
}
# The others: old name -> new name.
_RENAMED = {
    "defenses.elementwise_regularisers": "defenses.regularisers.elementwise",
    "defenses.group_regularisers": "defenses.regularisers.groups",
    "robustbench_sparse.fitting": "robustbench_sparse.training.preflight",
    "robustbench_sparse.folding": "robustbench_sparse.engine.batchnorm_folding",
    "robustbench_sparse.layer_tables": "robustbench_sparse.reporting.layers",
    "robustbench_sparse.optim": "robustbench_sparse.config.optimizers",
    "robustbench_sparse.optim_base": "robustbench_sparse.config.optimizer_base",
    "robustbench_sparse.shrink": "robustbench_sparse.sparsity.shrink",
    "robustbench_sparse.sparse_optim": "robustbench_sparse.config.sparse_optimizers",
    "robustbench_sparse.speed": "robustbench_sparse.engine.autotune",
    "robustbench_sparse.stats": "robustbench_sparse.foundation.intervals",
    "robustbench_sparse.stored": "robustbench_sparse.runs.rebuild",
    "robustbench_sparse.train": "robustbench_sparse.training.trainer",
    "robustbench_sparse.yaml_numbers": "robustbench_sparse.config.yaml_reader",
}

MOVED = _RENAMED | {
    f"{place.partition('.')[0]}.{name}": f"{place}.{name}"
    for place, names in _WENT.items()
    for name in names.split()
}

# Classes that have another name there.
_CLASSES = {
    **{f"robustbench_sparse.optim:{name}": f"{name}Spec" for name in ("SGD", "Adam", "AdamW")},
    **{
        f"robustbench_sparse.sparse_optim:{name}": f"{name}Spec" for name in ("LinBreg", "AdaBreg", "ProxSGD")
    },
}


def new_path(reference: str) -> str | None:
    """Where ``package.module:name`` of the old layout is now; None for a module that has not moved."""
    module, _, name = reference.partition(":")
    # The package's modules also answer to its own name, see ``robustbench_sparse.defenses``.
    module = module.replace("robustbench_sparse.defenses.", "defenses.", 1)
    if module not in MOVED:
        return None
    return f"{MOVED[module]}:{_CLASSES.get(f'{module}:{name}', name)}"
