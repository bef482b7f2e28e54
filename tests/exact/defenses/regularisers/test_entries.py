"""From a config's entry to a regulariser, and all weights of a network at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from defenses import L1, REGULARISERS, GroupLasso, TransformedL1, make_regulariser
from defenses.regularisers import GROUP_REGULARISERS, prox_many
from tests.helpers.regulariser_cases import CASES, SETS, build, log_uniform, rng, shape

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


class Ridge:
    """A user's own: the protocol and nothing else."""

    def value(self, w: Tensor) -> Tensor:
        return w.square().sum() / 2

    def prox(self, w: Tensor, step: float) -> Tensor:
        return w / (1 + step)

    def subgrad(self, w: Tensor) -> Tensor:
        return w


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_bare_name_and_a_mapping_build_the_same(name: str) -> None:
    made = make_regulariser(name)
    assert type(made) is REGULARISERS[name]
    assert made == make_regulariser({"name": name}) == REGULARISERS[name]()
    assert make_regulariser(made) is made


def test_settings_arrive() -> None:
    entry = {"name": "group_lasso", "group": "row", "weighted": True}
    assert make_regulariser(entry) == GroupLasso(group="row", weighted=True)
    assert entry == {"name": "group_lasso", "group": "row", "weighted": True}
    assert make_regulariser({"name": "transformed_l1", "a": 3}) == TransformedL1(a=3)
    own = Ridge()
    assert make_regulariser(own) is own
    for cls in GROUP_REGULARISERS.values():
        assert cls().factor(torch.tensor([0.0, 3.0]), 1.0).tolist()[0] == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("l3", "penalty: expected one of l1, l0, .*, got 'l3'"),
        ({"name": "l3"}, "penalty: expected one of l1, .*, got 'l3'"),
        ({"name": ["l1"]}, r"penalty: expected one of l1, .*, got \['l1'\]"),
        ({"a": 1}, "penalty: expected `name:` with one of l1, .*, got {'a': 1}"),
        (3, "penalty: expected one of l1, .*, got 3"),
        (None, "penalty: expected one of l1, .*, got None"),
        (L1, "penalty: expected one of l1, .*, got <class .*"),
        ({"name": "transformed_l1", "b": 1}, r"penalty: expected settings of transformed_l1 \(a\), got 'b'"),
        ({"name": "l1", "a": 1}, r"penalty: expected settings of l1 \(none\), got 'a'"),
        ({"name": "transformed_l1", "a": 0}, "penalty: a: expected a finite number > 0, got 0"),
        ({"name": "transformed_l1", "a": -1.0}, "penalty: a: expected a finite number > 0, got -1.0"),
        ({"name": "transformed_l1", "a": float("nan")}, "penalty: a: expected a finite number > 0, got nan"),
        ({"name": "transformed_l1", "a": float("inf")}, "penalty: a: expected a finite number > 0, got inf"),
        ({"name": "transformed_l1", "a": "1"}, "penalty: a: expected a finite number > 0, got '1'"),
        ({"name": "transformed_l1", "a": True}, "penalty: a: expected a finite number > 0, got True"),
        ({"name": "group_lasso", "group": "column"}, "penalty: group: expected channel or .*, got 'column'"),
        ({"name": "group_l0", "group": ["row"]}, r"penalty: group: expected channel or .*, got \['row'\]"),
        ({"name": "group_l0", "weighted": "no"}, "penalty: weighted: expected true or false, got 'no'"),
        ({"name": "sparse_group_lasso", "mix": 1.1}, r"penalty: mix: expected a number in \[0, 1\], got 1.1"),
        (
            {"name": "sparse_group_lasso", "mix": -0.1},
            r"penalty: mix: expected a number in \[0, 1\], got -0.1",
        ),
        ({"name": "sparse_group_lasso", "group": "x"}, "penalty: group: expected channel or .*, got 'x'"),
    ],
)
def test_entries_that_do_not_fit_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(ValueError) as e:
        make_regulariser(entry, "penalty")
    assert re.fullmatch(message, str(e.value))


@pytest.mark.parametrize("name", REGULARISERS)
def test_prox_many_is_prox_one_by_one(name: str) -> None:
    case = CASES[name]
    for k in range(SETS):
        g = rng(20, k)
        j, step = build(name, case.settings(g)), log_uniform(g, 0.05, 2) * float(g.integers(4) > 0)
        ws = []
        for _ in range(int(g.integers(0, 6))):  # sizes and types mixed
            w = torch.from_numpy(g.normal(size=shape(g))).to(DTYPES[g.integers(3)])
            ws.append(w.to(memory_format=torch.channels_last) if g.integers(2) else w)
        kept = [w.clone() for w in ws]
        alone = [j.prox(w, step) for w in ws]
        ways = [prox_many(j, ws, step)]
        if hasattr(j, "prox_end_to_end"):  # what accelerators get
            ways.append(j.prox_end_to_end(ws, step))
        for together in ways:
            assert isinstance(together, list)
            assert len(together) == len(ws)
            for a, b in zip(alone, together, strict=True):
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                if name == "transformed_l1":  # a processor's sine of one number and of eight may differ
                    torch.testing.assert_close(
                        a, b, rtol=4 * torch.finfo(a.dtype).eps, atol=16 * torch.finfo(a.dtype).eps
                    )
                    assert torch.equal(a == 0, b == 0)
                else:
                    assert torch.equal(a, b)
        assert all(torch.equal(a, b) for a, b in zip(kept, ws, strict=True))


def test_results_of_prox_many_do_not_share_entries() -> None:
    ws = [torch.ones(2, 2), torch.ones(3)]
    for together in (prox_many(L1(), ws, 0.0), L1().prox_end_to_end(ws, 0.0)):
        together[0].zero_()
        assert together[1].all()
    assert ws[0].all()


def test_prox_many_of_a_users_own_class() -> None:
    ws = [torch.ones(2, 2), torch.ones(3)]
    assert [u.tolist() for u in prox_many(Ridge(), ws, 1.0)] == [[[0.5, 0.5], [0.5, 0.5]], [0.5, 0.5, 0.5]]
