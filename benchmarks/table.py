"""The table of contents: every row of the benchmark is one function and one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import (
    rows_agreement,
    rows_autoattack,
    rows_certificate,
    rows_compile,
    rows_cw,
    rows_ensemble,
    rows_jobs,
    rows_pgd,
    rows_rgsm,
    rows_sparse,
    rows_start,
    rows_training,
    rows_zeros,
)
from benchmarks.bench import Bench
from benchmarks.lines import Line


@dataclass(frozen=True)
class Row:
    """A benchmark.

    Attributes:
        run: measures, and returns its lines of the table.
        budget: seconds it may take on two cores, without what it shares with other rows (networks, warm-up).
        default: whether it runs when none is named.
    """

    run: Callable[[Bench, float], list[Line]]
    budget: float
    default: bool = True


ROWS: dict[str, Row] = {
    "pgd-full": Row(rows_pgd.every_step, 100),
    "pgd-verdict-natural": Row(rows_pgd.to_a_verdict_natural, 40),
    "pgd-verdict-robust": Row(rows_pgd.to_a_verdict_robust, 50),
    "cw": Row(rows_cw.cw, 90),
    "agreement": Row(rows_agreement.agreement, 60),
    "at-epoch": Row(rows_training.at_epoch, 150),
    "single-step": Row(rows_training.single_step, 60),
    "ensemble": Row(rows_ensemble.ensemble, 40),
    "rgsm-step": Row(rows_rgsm.step, 25),
    "rgsm-update": Row(rows_rgsm.update, 10),
    "sparse-optimizers": Row(rows_sparse.optimizers, 60),
    "rvsm-step": Row(rows_sparse.rvsm, 40),
    "shrunk": Row(rows_sparse.shrunk, 60),
    "zeros": Row(rows_zeros.zeros, 120),
    "mlp-epoch": Row(rows_start.mlp_epoch, 40),
    "cli": Row(rows_start.command, 15),
    "reading": Row(rows_start.reading, 45),
    "compiling": Row(rows_compile.compiling, 150),
    "jobs": Row(rows_jobs.perceptrons, 150),
    "certificate": Row(rows_certificate.certificate, 500, default=False),
    "jobs-quickstart": Row(rows_jobs.quickstart, 900, default=False),
    "autoattack": Row(rows_autoattack.autoattack, 3600, default=False),
    "at-accuracy": Row(rows_training.at_accuracy, 3600, default=False),
}
