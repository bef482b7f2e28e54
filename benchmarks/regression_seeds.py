"""Does the regression test raise the alarm when a defense is weakened, and keep quiet when only the seed is another?

``python -m benchmarks.regression_seeds [--out CSV]``: small networks under PGD training on scikit-learn's digits (eps
0.2). The reference holds ten seeds. Ten retrainings with other seeds, and ten whose PGD training has half the eps,
are each held against it by ``assert_no_regression(across_seeds=True)``, one by one; and image by image, as if they
were the reference's networks, which shows why other seeds need the interval over seeds. One line for each goes to the
CSV.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustbench_sparse import run_benchmark
from robustbench_sparse.foundation.environment import commit, processor
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.testing import references
from robustbench_sparse.testing.deciding import over_seeds, paired
from robustbench_sparse.testing.measuring import of_benchmark
from robustbench_sparse.testing.references import Row

EPS = 0.2


def config(trained_against: float, epochs: int = 12) -> dict[str, Any]:
    """The benchmark: one network, PGD-trained in a ball of its own, judged by PGD-10 in the benchmark's."""
    return {
        "name": "regression",
        "data": {"name": "digits"},
        "validation": 100,
        "threat": {"norm": "linf", "eps": EPS},
        "attacks": {"pgd": {"name": "pgd", "steps": 10}},
        "threads": 1,
        "model": {"name": "preact_resnet", "depth": 8, "widths": [8, 16, 16]},
        "train": {
            "epochs": epochs,
            "batch_size": 64,
            "selection": "last",
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": "one_cycle",
        },
        "runs": {"pgd_at": {"defenses": [{"name": "pgd_at", "steps": 3, "eps": trained_against}]}},
    }


def trained(out: Path, seeds: range, trained_against: float, epochs: int = 12) -> Row:
    """The worst case of every seed's network, image by image."""
    run_benchmark(config(trained_against, epochs), out=out, seeds=list(seeds), variant="seeds", jobs=1)
    return of_benchmark(out / "regression@seeds", ("worst",))["pgd_at/worst"]


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/regression-seeds-amd-epyc.csv"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        reference = trained(Path(scratch) / "reference", range(10), EPS)
        references.write(Path(scratch) / "reference.json", {"pgd_at/worst": reference})
        stored = references.read(Path(scratch) / "reference.json")["pgd_at/worst"]
        known = [n.verdicts for n in stored.networks]
        for what, eps in (("other seed", EPS), ("half the eps", EPS / 2)):
            measured = trained(Path(scratch) / what.replace(" ", "_"), range(10, 20), eps)
            for k, network in enumerate(measured.networks):
                seeds, images = over_seeds(known, [network.verdicts]), paired(known[k], network.verdicts)
                rows.append(
                    {
                        "what": what,
                        "seed": network.seed,
                        "n": seeds.n,
                        "robust": round(seeds.measured, 2),
                        "reference": round(seeds.reference, 2),
                        "allowed": round(seeds.smallest, 2),
                        "over_seeds": seeds.outcome,
                        "image_by_image": images.outcome,
                        "commit": commit(),
                        "processor": processor(),
                    }
                )
                print(rows[-1], flush=True)
    write_text(out, pd.DataFrame(rows).to_csv(index=False))
    print(pd.DataFrame(rows).groupby(["what", "over_seeds"], sort=False).size().to_string())


if __name__ == "__main__":
    main()
