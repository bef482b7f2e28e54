from __future__ import annotations

import pytest

from robustbench_sparse.pages.methods import (
    band_of,
    division_of,
    fraction,
    methods_of,
    sparse_method,
    structure_of,
)


def test_methods_are_found_beside_settings_that_hold_plus_signs() -> None:
    text = "pgd_at(steps=3)+rgsm(regulariser=group_l0, lam=1e+05, groups=[{match: a+b}])+mine.nets:Own"
    assert methods_of(text) == ["pgd_at", "rgsm", "mine.nets:Own"]
    assert methods_of("") == []


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.2, "0.2"), (2.0, "2"), (0.1234, "0.1234"), (0.0, "0"), (1 / 255, "1/255")],
)
def test_radii_are_fractions_of_255_where_no_short_decimal_says_them(eps: float, text: str) -> None:
    assert fraction(eps) == text


def test_the_coarsest_structure_that_most_zeros_lie_in_names_them() -> None:
    zeros = {"weight_sparsity": 60.0, "channel_sparsity": 29.0, "row_sparsity": 31.0, "kernel_sparsity": 60.0}
    assert structure_of(zeros) == "rows"
    assert structure_of({**zeros, "channel_sparsity": 30.0}) == "channels"
    assert structure_of({"weight_sparsity": 60.0, "row_sparsity": 1.0}) == "single weights"
    assert structure_of({"weight_sparsity": 0.5}) == "dense"
    assert structure_of({}) == ""


@pytest.mark.parametrize(
    ("percent", "band"), [(0, "dense"), (1, "1 to 50 %"), (90, "90 to 95 %"), (99, "99 % and more")]
)
def test_bands_begin_at_their_lower_end(percent: float, band: str) -> None:
    assert band_of({"weight_sparsity": percent}) == band


def test_training_divisions() -> None:
    assert division_of(["magnitude_prune", "trades"], {}) == "adversarial training"
    assert division_of(["clip"], {}) == "another defense"
    assert division_of(["rgsm"], {"train_seconds": 1.0}) == "natural training"
    assert division_of([], {}) == "from elsewhere"


def test_what_made_a_network_sparse_leaves_out_what_only_started_it() -> None:
    assert sparse_method(["pgd_at", "ema", "sparse_init", "target_sparsity", "linbreg"]) == "linbreg"
    assert sparse_method(["pgd_at"]) == "none"
    assert sparse_method(["sparse_init"]) == "sparse_init"
