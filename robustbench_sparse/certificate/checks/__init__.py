"""The checks of the certificate, a file for each subject; ``CHECKS`` is the table of contents."""

from __future__ import annotations

from collections.abc import Iterable

from robustbench_sparse.certificate.checks import (
    activations,
    attack_records,
    binarization,
    controls,
    gradients,
    indicators,
    jumps,
    masking,
    noise,
    objective,
    other_images,
    outputs,
    seeds_and_data,
    sparsity_records,
    substitute,
    use,
)
from robustbench_sparse.certificate.finding import Check


def _in_order(checks: Iterable[Check]) -> dict[str, Check]:
    """By id; the verdict on the number itself comes last, when every adversarial is found."""
    return {c.id: c for c in sorted(checks, key=lambda c: c is controls.NUMBER_IS_WORST_CASE)}


CHECKS: dict[str, Check] = _in_order(
    [
        *masking.CHECKS,
        *controls.CHECKS,
        *gradients.CHECKS,
        *outputs.CHECKS,
        *jumps.CHECKS,
        *activations.CHECKS,
        *noise.CHECKS,
        *objective.CHECKS,
        *binarization.CHECKS,
        *indicators.CHECKS,
        *attack_records.CHECKS,
        *sparsity_records.CHECKS,
        *seeds_and_data.CHECKS,
        *substitute.CHECKS,
        *use.CHECKS,
        *other_images.CHECKS,
    ]
)
