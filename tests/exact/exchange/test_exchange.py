"""A row handed out as RobustBench has one, and adversarials of others held against it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import Threat
from robustbench_sparse import evaluate, run_benchmark
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.exchange.challenge import challenge
from robustbench_sparse.exchange.entry import EXTERNAL, KEYS, OURS, entry, eps_of, shown_eps
from robustbench_sparse.exchange.export import export
from robustbench_sparse.exchange.images import check_images, read_images, write_images
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.explain import explain
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs.certificate_record import Certificate
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.outcomes import Verdicts, verdicts
from tests.helpers.commands import call

EPS, LIMIT = 0.1, 40
CONFIG: dict[str, Any] = {
    "name": "row",
    "data": "digits",
    "threat": {"norm": "linf", "eps": EPS},
    "attacks": {
        "weak": {"name": "random_search", "queries": 3}
    },  # finds little, so that there is something left for others
    "evaluation": {"limit": LIMIT},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"epochs": 3, "selection": "last", "optimizer": {"name": "sgd", "lr": 0.5}},
    "runs": {"r": {}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row judged by noise, and the same one judged by AutoAttack."""
    out = tmp_path_factory.mktemp("made")
    run_benchmark(CONFIG, out=out, jobs=1)
    strong = {"autoattack": {"name": "autoattack", "steps": 2, "targets": 1, "queries": 0}}
    run_benchmark({**CONFIG, "attacks": strong}, out=out, jobs=1, variant="strong")
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A row's folder that may be changed."""
    shutil.copytree(made / "row", tmp_path / "row")
    (found,) = (tmp_path / "row" / "runs").iterdir()
    return found


@pytest.fixture
def strong(made: Path, tmp_path: Path) -> Path:
    """That of the same network judged by AutoAttack."""
    shutil.copytree(made / "row@strong", tmp_path / "row@strong")
    (found,) = (tmp_path / "row@strong" / "runs").iterdir()
    return found


def network(run: Path) -> nn.Module:
    return RunFolder.at(run).network(1, 8, 10)


def clean(limit: int | None = LIMIT) -> tuple[Tensor, Tensor, Tensor]:
    """The judged images, their labels and positions."""
    data = PreparedData(DATASETS["digits"]().load(), validation=0, test_limit=limit)
    x, y = data.gather("test", torch.arange(data.count("test")))
    return x, y, data.test_indices


def stronger(run: Path, limit: int | None = LIMIT) -> Tensor:
    """Adversarials of a better attack than the row's own."""
    x, y, _ = clean(limit)
    return PGD(steps=20)(network(run), x, y, Threat(eps=EPS), torch.Generator().manual_seed(0))


def row_of(run: Path) -> Any:
    return tabulate(run.parents[1]).iloc[0]


def sent(path: Path, x: Any) -> Path:
    torch.save(x, path)
    return path


# In -------------------------------------------------------------------------------------------------------


def test_what_fools_the_network_lowers_its_number_and_names_the_author(run: Path, tmp_path: Path) -> None:
    y = clean()[1]
    before = verdicts(run, read_manifest(run.parents[1])).columns["worst"]
    adversarial = stronger(run)
    right = (network(run)(adversarial).argmax(1) == y).double()
    expected = torch.minimum(torch.tensor(before.to_numpy(dtype="float64")), right)
    done = challenge(run, sent(tmp_path / "a.pt", adversarial), "Jane  Doe")
    row = row_of(run)
    assert done.stored
    assert done.broken == int((expected < torch.tensor(before.to_numpy())).sum()) > 0
    assert row["worst"] == pytest.approx(100 * float(expected.mean())) == pytest.approx(done.after)
    assert (row["n"], row["worst_n"], row["weak"]) == (LIMIT, LIMIT, pytest.approx(100 * before.mean()))
    assert row["flags"] == "challenge:Jane_Doe"
    assert row["status"] == f"ok; challenge by Jane Doe: {done.broken} images broken"
    assert f"by Jane Doe: broke {done.broken} of {LIMIT}" in explain(run, read_manifest(run.parents[1]))
    written = pd.read_csv(run.parents[1] / "leaderboard.csv").iloc[0]
    assert written["worst"] == pytest.approx(row["worst"], abs=1e-3)

    again = challenge(run, tmp_path / "a.pt", "Somebody else")  # who came first is named
    assert (again.stored, again.broken) == (False, 0)
    assert row_of(run)["flags"] == "challenge:Jane_Doe"
    assert "where nothing did before" in again.lines()[1]


def test_what_was_broken_can_be_tried_again(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    x, _, index = clean()
    done = challenge(run, sent(tmp_path / "a.pt", stronger(run)), "a")
    (file,) = (run / "challenges").glob("*.safetensors")
    kept = load_file(file)
    places = {int(i): p for p, i in enumerate(index.tolist())}
    at = torch.tensor([places[i] for i in kept["index"].tolist()])
    assert len(at) == done.broken
    assert bool((network(run)(kept["candidate"]).argmax(1) != clean()[1][at]).all())
    assert float((kept["candidate"] - x[at]).abs().max()) <= EPS + 1e-6
    for end in ("csv", "safetensors", "json"):
        (path,) = (run / "challenges").glob(f"*.{end}")
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(UserError, match="changed since it was stored"):
            tabulate(run.parents[1])
        path.write_bytes(before)


def test_every_test_image_or_every_judged_one(run: Path, tmp_path: Path) -> None:
    every = clean(None)[0]
    adversarial = every.clone()
    adversarial[clean()[2]] = stronger(run)
    done = challenge(run, sent(tmp_path / "a.pt", {"x_adv": adversarial}), "a")
    assert (done.n, done.stored) == (LIMIT, True)


def test_a_file_that_is_not_what_it_should_be_changes_nothing(run: Path, tmp_path: Path) -> None:
    x, _, _ = clean()
    good, bytes_ = stronger(run), (255 * x).round().to(torch.uint8)
    wrong: list[tuple[Any, str]] = [
        (good[1:], r"expected images of shape \(40, 1, 8, 8\), got \(39, 1, 8, 8\)"),
        (good.flip(0), "outside the ball linf 0.1: .* in the order of the data set"),
        (x + 2 * (good - x), r"outside \[0, 1\]"),
        ((x + 1.5 * (good - x)).clamp(0, 1), "outside the ball linf 0.1: up to 0.15"),
        (good.where(good > 0.5, torch.nan), r"40 of 40 images, number 0 first, are not finite"),
        (good - 1, r"outside \[0, 1\]"),
        (good.long(), "expected floating-point numbers or bytes, got torch.int64"),
        ({"a": good, "b": good}, "expected one tensor, got 'dict'"),
        (torch.zeros(1).expand(10**9), "expected at most .* numbers"),
        (good.to_sparse(), "expected a plain tensor"),
    ]
    threat = Threat(eps=EPS)
    for value, expected in wrong:
        with pytest.raises(UserError, match=expected):
            check_images(read_images(sent(tmp_path / "a.pt", value), x.numel()), x, threat, "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="refused"):
        read_images(tmp_path / "b.pt", x.numel())
    (tmp_path / "c.pt").write_bytes(b"0" * 20_000_000)
    with pytest.raises(UserError, match="expected at most"):
        read_images(tmp_path / "c.pt", x.numel())
    with pytest.raises(UserError, match="no such file"):
        read_images(tmp_path / "d.pt", x.numel())
    with pytest.raises(UserError, match="--author"):
        challenge(run, sent(tmp_path / "a.pt", good), " \n")
    with pytest.raises(UserError, match="outside the ball"):
        challenge(run, sent(tmp_path / "a.pt", good.flip(0)), "a")
    assert not (run / "challenges").exists()
    assert challenge(run, sent(tmp_path / "a.pt", bytes_), "a").stored is False  # the clean images, as bytes


def test_a_challenge_of_another_network_does_not_count(run: Path, tmp_path: Path) -> None:
    from robustbench_sparse.runs.seals import seal

    before = row_of(run)["worst"]
    challenge(run, sent(tmp_path / "a.pt", stronger(run)), "a")
    (path,) = (run / "challenges").glob("*.json")
    about = json.loads(path.read_text())
    about["key"]["identity"] = "another"
    path.write_text(json.dumps(about))
    seal(run)
    row = row_of(run)
    assert (row["worst"], row["flags"]) == (before, "")
    assert "of another network or threat, not counted" in row["status"]


def test_a_network_from_elsewhere_has_to_be_shown(run: Path, tmp_path: Path) -> None:
    model = network(run)
    out = tmp_path / "out"
    evaluate(model, dataset="digits", eps=EPS, attacks=CONFIG["attacks"], limit=LIMIT, out=out)
    (foreign,) = (out / "runs").iterdir()
    file = sent(tmp_path / "a.pt", stronger(run))
    with pytest.raises(UserError, match="its network is not in its folder"):
        challenge(foreign, file, "a")
    other = network(run)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    with pytest.raises(UserError, match="is not the network"):
        challenge(foreign, file, "a", network=other)
    assert challenge(foreign, file, "a", network=network(run)).stored
    with pytest.raises(UserError, match="has its network in its folder"):
        challenge(run, file, "a", network=model)


@pytest.mark.parametrize(("before", "after"), [("believable", "corrected"), ("refuted", "refuted")])
def test_a_number_that_others_put_right_is_corrected(before: str, after: str) -> None:
    found = Verdicts({}, [], [], [], Certificate(found={}, verdict=before))
    assert found.verdict == before
    found.challenged = True
    assert found.verdict == after


# Out ------------------------------------------------------------------------------------------------------


def test_an_entry_has_their_keys_and_the_images_their_shape(strong: Path, tmp_path: Path) -> None:
    about = {"name": "A title", "authors": "Jane Doe", "additional_data": False}
    run = strong
    files = export(run, tmp_path / "out", name="Doe2026Sparse", about=about)
    folder = tmp_path / "out" / "model_info" / "digits" / "Linf"
    assert files == [folder / "Doe2026Sparse.json", folder / "Doe2026Sparse.pt"]
    found, row = json.loads(files[0].read_text()), row_of(run)
    assert tuple(found) == (*KEYS, OURS)
    assert (found["name"], found["authors"], found["dataset"], found["eps"]) == (
        "A title",
        "Jane Doe",
        "digits",
        "0.1",
    )
    assert float(found["autoattack_acc"]) == pytest.approx(row["autoattack"], abs=0.01)
    assert found["footnote"] == "AutoAttack with steps 2, targets 1, queries 0"
    ours = found[OURS]
    assert ours["worst"] == row["worst"]

    images = torch.load(files[1], weights_only=True)
    x, y, _ = clean()
    assert (images.dtype, images.shape) == (torch.float32, x.shape)
    assert float((images - x).abs().max()) <= EPS + 1e-6
    accuracy = float((network(run)(images).argmax(1) == y).double().mean())
    assert 100 * accuracy == pytest.approx(ours["adversarials"]["accuracy"], abs=1e-3)
    assert 100 * accuracy == pytest.approx(row["worst"])
    with pytest.raises(UserError, match="is there already"):
        export(run, tmp_path / "out", name="Doe2026Sparse")


def test_the_exported_images_are_a_challenge(strong: Path, run: Path, tmp_path: Path) -> None:
    """They break nothing new of their own row, and of the one that knows noise alone all that they broke there."""
    files = export(strong, tmp_path / "out")
    own, other = challenge(strong, files[1], "myself"), challenge(run, files[1], "myself")
    assert not own.stored
    assert other.stored
    assert 100 * (1 - own.fooled) == pytest.approx(own.before) == pytest.approx(other.after)
    again = export(strong, tmp_path / "again", adversarials=False)
    assert "adversarials" not in json.loads(again[0].read_text())[OURS]


def test_a_number_below_autoattacks_stands_under_their_key_for_that(strong: Path) -> None:
    row, manifest = row_of(strong), read_manifest(strong.parents[1])
    lower = entry({**row, "worst": row["autoattack"] - 2}, manifest, {}, {"data": "digits"})
    assert tuple(lower) == (*KEYS, EXTERNAL, OURS)
    assert float(lower[EXTERNAL]) == pytest.approx(row["autoattack"] - 2, abs=0.01)


def test_a_row_without_autoattack_has_no_entry(strong: Path, run: Path) -> None:
    row, manifest = row_of(strong), read_manifest(strong.parents[1])
    ours = {"data": "digits"}
    assert entry(row, manifest, {}, ours)["venue"] == ""
    assert EXTERNAL not in entry(row, manifest, {}, ours)
    with pytest.raises(UserError, match="none of the row's attacks"):
        export(run, run)
    for settings in (
        {"name": "pgd"},
        {**manifest["settings"]["autoattack"], "threat": {"norm": "l2", "eps": 1.0}},
    ):
        with pytest.raises(UserError, match="add `autoattack`"):
            entry(row, {**manifest, "settings": {"autoattack": settings}}, {}, ours)


def test_radii_as_they_write_them() -> None:
    assert [shown_eps(e) for e in (8 / 255, 0.5, 0.1, 0.0)] == ["8/255", "0.5", "0.1", "0"]
    assert eps_of("8/255") == 8 / 255


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 4, 4)
    write_images(tmp_path / "x.pt", x[:, :, ::2])
    assert torch.equal(read_images(tmp_path / "x.pt", 96), x[:, :, ::2])


def test_the_commands_say_what_they_did(strong: Path, run: Path, tmp_path: Path) -> None:
    result = call(
        "export", str(strong), "-o", str(tmp_path / "out"), "--title", "T", "--no-adversarials", "-q"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(next((tmp_path / "out").rglob("*.json")).read_text())["name"] == "T"
    file = sent(tmp_path / "a.pt", stronger(run))
    result = call("challenge", str(run), str(file), "--author", "Jane Doe", "-q")
    assert result.exit_code == 0, result.output
    assert "images that stood are broken: worst" in result.stdout
    assert "challenge:Jane_Doe" in call("leaderboard", str(run.parents[1]), "--format", "csv").stdout
    assert "by Jane Doe" in call("explain", str(run)).stdout
    assert "--format: expected robustbench" in call("export", str(run), "-o", "x", "--format", "bench").stderr
