"""Corrected numbers, ranks within a protocol with their intervals, and what is said below a table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.ranking import detectable, ranking
from robustbench_sparse.reporting.explain import explain
from robustbench_sparse.reporting.leaderboard import aggregate, tabulate
from robustbench_sparse.reporting.ranks import METHOD, notes_of, rank
from robustbench_sparse.reporting.tables import show, text_of, write
from robustbench_sparse.runs.certificate_record import chosen_places
from robustbench_sparse.runs.manifest import read_manifest
from tests.helpers.written_rows import Written, number, record, written

N, EXAMINED = 400, 100
PLACES = chosen_places(N, EXAMINED)
PASSED = [number(0.5, 0.5, False)]


def first(right: int) -> list[float]:
    """The first so many images stand."""
    return [float(i < right) for i in range(N)]


def good(right: int, **changes: Any) -> Written:
    return Written(stands=first(right), checks=PASSED, n=EXAMINED, images=PLACES, **changes)


def lowered(left: int, *more: dict[str, Any], **changes: Any) -> Written:
    """All images stand against the attack; of the examined ones the checks leave so many."""
    found = dict.fromkeys(PLACES[left:], 0.0)
    checks = [number(1.0, left / EXAMINED, True), *more]
    changes = {"images": PLACES, **changes}
    return Written(stands=[1.0] * N, checks=checks, found=found, n=EXAMINED, **changes)


def shown(table: pd.DataFrame) -> str:
    out = io.StringIO()
    show(Console(file=out, width=200, force_terminal=True, color_system=None), [table])
    return out.getvalue()


# Corrected numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [PLACES, None], ids=["images named", "of an earlier version"])
def test_a_corrected_number_stands_on_the_examined_images(tmp_path: Path, images: list[int] | None) -> None:
    table = tabulate(written(tmp_path, {"a": lowered(40, images=images), "b": good(200)}))
    a, b = table.iloc[0], table.iloc[1]
    low, high = wilson(40, EXAMINED)
    assert (a["verdict"], a["flags"]) == ("corrected", "M13")
    assert (a["worst"], a["worst_n"], a["n"]) == (40.0, EXAMINED, N)
    assert (a["worst_lo"], a["worst_hi"]) == pytest.approx((100 * low, 100 * high))
    assert a["pgd"] == 100.0
    assert a["status"] == (
        "ok; worst: of the 100 examined images, where the checks' adversarials lower it; with the images that the "
        "checks did not attack it would be 85.0"
    )
    assert (b["verdict"], b["worst"], b["worst_n"], b["status"]) == ("believable", 50.0, N, "ok")


def test_a_refuted_number_stands_on_them_too(tmp_path: Path) -> None:
    table = tabulate(written(tmp_path, {"a": lowered(40, record("M3", "failed")), "b": good(200)}))
    assert table["verdict"].tolist() == ["refuted", "believable"]
    assert table["worst"].tolist() == [40.0, 50.0]
    assert table["rank"].tolist() == [2, 1]
    assert table["rank_high"].isna().tolist() == [True, False]


def test_adversarials_within_chance_count_and_change_no_image_set(tmp_path: Path) -> None:
    some = Written(stands=[1.0] * N, checks=PASSED, found={PLACES[0]: 0.0}, n=EXAMINED, images=PLACES)
    row = tabulate(written(tmp_path, {"a": some})).iloc[0]
    assert (row["worst"], row["worst_n"], row["status"]) == (100 * (N - 1) / N, N, "ok")


def test_where_all_images_were_examined_nothing_is_left_out(tmp_path: Path) -> None:
    everything = list(range(N))
    some = Written(
        stands=[1.0] * N, checks=[number(1.0, 0.5, True)], found=dict.fromkeys(everything[200:], 0.0), n=N,
        images=everything,
    )  # fmt: skip
    row = tabulate(written(tmp_path, {"a": some})).iloc[0]
    assert (row["worst"], row["worst_n"], row["status"], row["verdict"]) == (50.0, N, "ok", "corrected")


def test_a_corrected_row_is_ranked_on_the_examined_images(tmp_path: Path) -> None:
    """Over all images its verdicts would still beat the other row's."""
    table = tabulate(written(tmp_path, {"a": lowered(40), "b": good(280), "c": good(20)}))
    verdicts = [[1.0] * N, first(280), first(20)]
    for i in PLACES[40:]:
        verdicts[0][i] = 0.0
    assert sum(verdicts[0]) > sum(verdicts[1])
    found = ranking(verdicts, [PLACES, None, None])
    assert table["rank"].tolist() == list(found.low) == [2, 1, 3]
    assert table["rank_high"].tolist() == list(found.high) == [2, 1, 3]


def test_the_table_says_on_how_many_images(tmp_path: Path) -> None:
    table = tabulate(written(tmp_path, {"a": lowered(40), "b": good(200)}))
    assert "40.0 [30.9, 49.8] of 100 images" in text_of([table], "markdown")
    assert "of 100" in shown(table)
    assert "50.0 [45.1, 54.9] |" in text_of([table], "markdown")
    over_seeds = aggregate(table)
    assert over_seeds["worst_n"].tolist() == [EXAMINED, N]
    assert "of 100" in shown(over_seeds)


def test_explain_says_what_was_corrected_and_what_is_in_doubt(tmp_path: Path) -> None:
    v1 = record("V1", "failed", refutes=True, after_float64_acc=0.4)
    rows = {"a": lowered(40, v1), "b": lowered(40, v1, record("M3", "failed")), "c": lowered(2), "d": good(1)}
    folder = written(tmp_path, rows)
    manifest = read_manifest(folder)
    a, b, c, d = (" ".join(explain(folder / "runs" / f"{k}-s0", manifest).split()) for k in "abcd")
    assert a.startswith("a-s0: corrected")
    assert (
        "The checks' adversarials lower the number from 100.0 to 40.0 % on these 100 images. `worst` is the rate on "
        "them alone, as the other test images were not attacked like that. Failed, and answered, since the number "
        "explains what they found: V1, M13. Still in doubt: whether a stronger attack would find more"
    ) in a
    assert b.startswith("b-s0: refuted")
    assert "and answered, since the number explains what they found: V1. Still in doubt: M13" in b
    assert "M3 (title of M3)." in b
    assert "answered, since by no more than chance are over 3 % of the images left to break: M13." in c
    assert "in doubt" not in c
    assert "in doubt" not in d
    assert "lower the number" not in d


# Ranks ----------------------------------------------------------------------------------------------------


def test_rank_intervals_and_what_could_be_told_apart(tmp_path: Path) -> None:
    table = tabulate(written(tmp_path, {"a": good(300), "b": good(296), "c": good(100)}))
    assert table["rank"].tolist() == [1, 1, 3]
    assert table["rank_high"].tolist() == [2, 2, 3]
    seen = [detectable((k + 2) / (N + 2), N + 2, 0.05 / 3) for k in (4, 196)]
    assert table["detectable"].tolist() == pytest.approx([100 * sum(seen) / 2] * 3)
    text = text_of([table], "markdown")
    assert "| 1 [1, 2] |" in text
    assert "| 3 |" in text
    assert METHOD in text
    assert f"with a power of 80 %: {100 * sum(seen) / 2:.1f} points." in text
    written_table = write(tmp_path)
    assert METHOD in (tmp_path / "leaderboard.md").read_text()
    assert "detectable" in (tmp_path / "leaderboard.csv").read_text().splitlines()[0]
    pd.testing.assert_frame_equal(written_table, table)
    assert METHOD in shown(table)
    assert METHOD in shown(aggregate(table))


def test_one_row_has_the_first_rank_and_detects_nothing(tmp_path: Path) -> None:
    table = tabulate(written(tmp_path, {"a": good(300)}))
    row = table.iloc[0]
    assert (row["rank"], row["rank_high"], row["rank_seeds"]) == (1, 1, 1)
    assert pd.isna(row["detectable"])
    assert not any("power" in note for note in notes_of(table))


def test_incomplete_rows_are_ranked_with_nobody(tmp_path: Path) -> None:
    table = tabulate(written(tmp_path, {"a": good(300), "b": Written(stands=first(200)), "c": good(100)}))
    assert table["status"].tolist() == ["ok", "incomplete: certificate", "ok"]
    assert table["rank"].tolist()[::2] == [1, 2]
    assert table[["rank", "rank_high", "rank_seeds", "detectable"]].iloc[1].isna().all()
    assert table["protocol"].tolist()[1] == ""


def test_without_certificates_rows_are_ranked_by_their_attacks(tmp_path: Path) -> None:
    rows = {"a": Written(stands=first(300)), "b": Written(stands=first(100))}
    table = tabulate(written(tmp_path, rows, certificate="off"))
    assert table["rank"].tolist() == [1, 2]
    assert table["protocol"].str.endswith("+off").all()
    assert table["verdict"].tolist() == ["not checked"] * 2


def test_rows_of_different_protocols_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    """Two were examined by an earlier set of checks."""
    rows = {"a": good(300), "b": good(200, version=None), "c": good(100), "d": good(20, version=None)}
    table = tabulate(written(tmp_path, rows))
    new, old = table["protocol"][0], table["protocol"][1]
    assert (new.endswith("+quick-2"), old.endswith("+quick-1")) == (True, True)
    assert table["protocol"].tolist() == [new, old, new, old]
    assert table["rank"].tolist() == [1, 1, 2, 2]
    text = text_of([table], "markdown")
    assert f"Protocols {new}, {old}: rows of different protocols are not ranked against each other." in text
    assert f"| {old} |" in text
    assert f"points ({new})" in text
    same = text_of([tabulate(tmp_path, only=["a", "c"])], "markdown")
    assert f"Protocol {new}." in same
    assert f"| {new} |" not in same


def test_a_run_whose_seeds_differ_in_protocol_has_no_rank_over_seeds(tmp_path: Path) -> None:
    rows = {
        "a": [good(300), good(310, seed=1)],
        "b": [good(100), good(110, seed=1)],
        "c": [good(20), good(10, seed=1, version=None)],
    }
    table = tabulate(written(tmp_path, rows))
    assert table["rank"].tolist() == [1, 1, 2, 2, 3, 1]
    assert table["rank_seeds"].tolist()[:4] == [1, 1, 2, 2]
    assert table["rank_seeds"].isna().tolist() == [False] * 4 + [True] * 2
    over_seeds = aggregate(table)
    assert over_seeds["rank"].isna().tolist() == [False, False, True]
    assert over_seeds["rank_high"].tolist()[:2] == [1, 2]
    assert over_seeds["protocol"][2].count("quick-") == 2
    note = notes_of(table)[-1]
    assert "(seed 0 " in note
    assert "(seed 1 " in note


def test_means_over_seeds_stand_on_the_images_that_all_seeds_stand_on() -> None:
    """One seed was corrected: over the seeds, too, only the examined images count."""
    rows = [
        {"run": "a", "seed": s, "protocol": "p", "verdict": "corrected", "_worst": w, "_stands": stands}
        for s, w, stands in ((0, first(300), None), (1, first(200), PLACES))
    ]
    rows += [{"run": "b", "seed": s, "protocol": "p", "verdict": "", "_worst": first(10)} for s in (0, 1)]
    rank(rows)
    mean = [(x + y) / 2 for x, y in zip(first(300), first(200), strict=True)]
    found = ranking([mean, first(10)], [PLACES, None])
    assert [row["rank_seeds"] for row in rows] == [found.low[0]] * 2 + [found.low[1]] * 2
    assert rows[0]["detectable_seeds"] == pytest.approx(100 * found.detectable)
    assert not any(key.startswith("_") for row in rows for key in row)


def test_a_folder_that_says_nothing_of_its_attacks_is_ranked_within_itself(tmp_path: Path) -> None:
    table = tabulate(written(tmp_path, {"a": good(300), "b": good(100)}, settings={}))
    assert table["protocol"].tolist() == ["unknown+quick-2"] * 2
    assert table["rank"].tolist() == [1, 2]
