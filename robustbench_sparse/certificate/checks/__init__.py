"""The checks of the certificate, a file for each subject; ``CHECKS`` is the table of contents."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence

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
from robustbench_sparse.config.plugins import import_object
from robustbench_sparse.foundation.errors import UserError, shown


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

_OWN_ID = re.compile(r"X[A-Za-z0-9_]{1,20}")  # no check of this package begins with an X


def own_checks(references: Sequence[str]) -> dict[str, Check]:
    """Checks of a user's own, by id, in their order.

    Args:
        references: ``package.module:NAME`` of each.

    Raises:
        UserError: something is no check, or two have one id.
    """
    found: dict[str, Check] = {}
    for reference in references:
        check = import_object(reference)
        if not isinstance(check, Check):
            raise UserError(
                f"evaluation.checks: {reference}: expected a certificate.finding.Check, got {shown(check)}"
            )
        if not _OWN_ID.fullmatch(check.id) or check.id in found:
            raise UserError(
                f"evaluation.checks: {reference}: expected an id of its own that begins with X, as X1, got {check.id!r}"
            )
        if not inspect.isfunction(check.run):
            raise UserError(
                f"evaluation.checks: {reference}: expected a function as its run, whose source is recorded"
            )
        found[check.id] = check
    return found


def with_own(checks: Mapping[str, Check], own: Mapping[str, Check]) -> dict[str, Check]:
    """Checks and a user's own; the verdict on the number itself stays the last, when every adversarial is found."""
    last = controls.NUMBER_IS_WORST_CASE.id
    return {
        **{k: c for k, c in checks.items() if k != last},
        **own,
        **{k: checks[k] for k in (last,) if k in checks},
    }
