"""The whole certificate on honest networks of many kinds, written in many ways: no check breaks off, none accuses.

``python -m benchmarks.honest_zoo`` does the same with more images, on MNIST too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from robustbench_sparse.judging.relatives import Relative, Relatives
from tests.exact.certificate.test_zoo import STRONG, judged
from tests.helpers.certificate_subjects import EPS, FIRST, digits
from tests.helpers.honest_idioms import IDIOMS
from tests.helpers.honest_zoo import HONEST, Task, idiom

pytestmark = pytest.mark.slow
UNDEFENDED = {"natural", "confident", "label_smoothing", "third_party"}
# One of each way in which the checks can be led astray: inputs, normalisation, zeros, rounding, noise, outputs, code.
# The rest is long: a certificate of its own each.
TYPICAL = {
    "mlp",
    "tokens",
    "batch_norm",
    "pruned",
    "int8",
    "log_probabilities",
}
# In place, paths that meet, weights that are computed, products without a layer, images made others first.
WRITTEN = {"inplace_relu", "cat_skips", "weight_norm", "einsum_attention", "normalisation_inside"}


def task(seed: int) -> Task:
    x, y = digits()
    return Task(x[:FIRST], y[:FIRST], EPS, seed)


def alarms(net: nn.Module, kin: Relatives, folder: Path) -> dict[str, Any]:
    made = judged(net, STRONG, folder, kin)
    return {c["id"]: (c["done"], c["measured"]) for c in made["checks"] if c["status"] in ("failed", "error")}


def test_there_are_enough_of_them() -> None:
    assert len(IDIOMS) >= 20
    assert len(HONEST) >= 15
    assert not set(HONEST) & set(IDIOMS), "one name, one network"
    assert set(HONEST) > TYPICAL
    assert set(IDIOMS) > WRITTEN


@pytest.mark.parametrize(
    "name", [n if n in WRITTEN else pytest.param(n, marks=pytest.mark.long) for n in sorted(IDIOMS)]
)
def test_however_a_forward_pass_is_written(name: str, tmp_path: Path) -> None:
    net = idiom(IDIOMS[name])(task(0))
    assert alarms(net, Relatives(undefended=True), tmp_path) == {}


# A seed each; ``benchmarks.honest_zoo --seeds 0 1 2`` goes through all of them.
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, i % 3, marks=() if name in TYPICAL else pytest.mark.long)
        for i, name in enumerate(sorted(HONEST))
    ],
)
def test_whatever_kind_of_network_it_is(name: str, seed: int, tmp_path: Path) -> None:
    kin = Relatives(twin=Relative("natural", lambda: HONEST["natural"](task(seed)), f"natural {seed}"))
    net = HONEST[name](task(seed))
    assert alarms(net, Relatives(undefended=True) if name in UNDEFENDED else kin, tmp_path) == {}
