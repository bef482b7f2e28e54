"""The zoo: its files are whole, its numbers are those of the record, and a network goes in whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustbench_sparse import evaluate, list_models, load_model, run_benchmark
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.runs import zoo
from robustbench_sparse.runs.seals import seal
from robustbench_sparse.zoo import against_record
from robustbench_sparse.zoo.adding import MOST_BYTES, MOST_NETWORKS, add

NAMES = zoo.names_of()


def test_the_zoo_is_small_and_whole() -> None:
    assert 1 <= len(NAMES) <= MOST_NETWORKS
    for network in zoo.every():  # holds every file against its hash
        assert network.place.weights.stat().st_size <= MOST_BYTES
        assert network.row["status"].startswith("ok")
        assert network.row["verdict"] != "not checked"
        assert network.environment


def test_the_list_says_what_the_records_say() -> None:
    table = list_models()
    assert table["name"].tolist() == sorted(NAMES)
    for row in table.to_dict("records"):
        recorded = json.loads((zoo.HOME / row["name"] / "zoo.json").read_text())["row"]
        assert (row["clean"], row["robust"], row["verdict"]) == (
            recorded["clean"],
            recorded["worst"],
            recorded["verdict"],
        )
        assert row["robust_lo"] <= row["robust"] <= row["robust_hi"]


@pytest.mark.parametrize("name", NAMES)
def test_every_rate_is_counted_from_images(name: str) -> None:
    network = zoo.find(name)
    table = network.verdicts()
    assert len(table) == network.row["n"]
    for rate in network.rates:
        right, n = table[rate].sum(), int(table[rate].notna().sum())
        assert network.row[rate] == pytest.approx(100 * right / n)
        assert [network.row[f"{rate}{end}"] for end in ("_lo", "_hi")] == pytest.approx(
            [100 * bound for bound in wilson(right, n)]
        )


def test_fewer_images_are_held_against_the_same_ones() -> None:
    """The images that this network gets wrong alone: far from its rate, and yet just as recorded."""
    network = zoo.find(NAMES[0])
    clean = network.verdicts()["clean"]
    wrong = clean.index[clean == 0].tolist()
    measured = pd.DataFrame([{"n": len(wrong), "clean": 0.0}])
    assert not against_record(measured, network.name)[1]
    measured.attrs["images"] = wrong
    lines, agrees = against_record(measured, network.name)
    assert agrees
    assert lines == [
        f"clean: 0.0 % of {len(wrong)}, recorded 0.0 % of {len(wrong)}: {lines[0].split(': ')[2]}"
    ]


def test_the_list_is_cut_to_a_data_set_and_a_threat() -> None:
    assert list_models(dataset="MNIST", threat="linf")["name"].str.startswith("mnist/").all()
    assert list_models(threat="L2").empty
    with pytest.raises(UserError, match=r"dataset: expected one of .*mnist"):
        list_models(dataset="mnits")
    with pytest.raises(UserError, match="threat: expected Linf or L2, got 'l1'"):
        list_models(threat="l1")


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_loaded_with_its_weights(name: str) -> None:
    network = zoo.find(name)
    model = load_model(name, threat="Linf")
    images = network.images
    x = torch.rand(3, images["channels"], images["size"], images["size"])
    assert not model.training
    assert model(x).shape == (3, images["classes"])
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
    assert nonzero == network.row["nonzero_parameters"]


def test_networks_are_called_as_robustbench_calls_them() -> None:
    data, _, short = NAMES[-1].partition("/")
    same = [
        load_model(NAMES[-1]),
        load_model(model_name=short, dataset=data.upper(), threat_model="Linf"),
        load_model(f"zoo:{NAMES[-1]}", dataset=data, threat_model="linf"),
    ]
    tensors = [list(model.parameters()) for model in same]
    assert all(torch.equal(a, b) for other in tensors[1:] for a, b in zip(tensors[0], other, strict=True))
    assert list_models(data, "Linf")["name"].tolist() == list_models(data, threat="Linf")["name"].tolist()
    with pytest.raises(UserError, match=f"dataset: {NAMES[-1]} is not a network of cifar10jpeg"):
        load_model(NAMES[-1], dataset="cifar10jpeg")
    with pytest.raises(UserError, match=r"was judged under Linf, not L2"):
        load_model(short, dataset=data, threat_model="L2")
    with pytest.raises(UserError, match="expected threat_model alone"):
        list_models(threat_model="Linf", threat="Linf")


def test_what_is_asked_for_wrongly() -> None:
    name = NAMES[0]
    with pytest.raises(UserError, match=f"no such network .did you mean '{name}'"):
        load_model(name[:-1])
    with pytest.raises(UserError, match=f"{name} was judged under Linf, not L2"):
        load_model(name, threat="L2")
    with pytest.raises(UserError, match="has its own weights"):
        evaluate(f"zoo:{name}", weights="other.safetensors")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    shutil.copytree(zoo.HOME / NAMES[0], tmp_path / "zoo" / NAMES[0])
    return tmp_path / "zoo"


@pytest.mark.parametrize("file", ["zoo.json", "images.csv", "run.json", "model.safetensors"])
def test_a_changed_or_missing_file_is_refused(home: Path, file: str) -> None:
    path = home / NAMES[0] / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{file}: changed since it was stored"):
        zoo.find(NAMES[0], home)
    path.unlink()
    with pytest.raises(UserError, match="no such network" if file == "zoo.json" else f"{file}: missing"):
        zoo.find(NAMES[0], home)


def test_a_record_imports_no_code(home: Path) -> None:
    """Whoever rewrites hashes, too, gets no further than a benchmark's own file would."""
    folder = home / NAMES[0]
    facts = json.loads((folder / "run.json").read_text())
    facts["record"]["model"] = {"name": "this:d"}  # a module that says something when it is imported
    (folder / "run.json").write_text(json.dumps(facts))
    seal(folder)
    network = zoo.find(NAMES[0], home)
    with pytest.raises(UserError, match="this:d"):
        network.place.network(**network.images)


def _row(network: zoo.ZooNetwork, **changes: float) -> pd.DataFrame:
    table: pd.DataFrame = pd.DataFrame([{**network.row, **changes}])
    return table


def test_a_measurement_is_held_against_the_record() -> None:
    network = zoo.find(NAMES[0])
    lines, agrees = against_record(_row(network), NAMES[0])
    assert agrees
    assert [line.partition(":")[0] for line in lines] == network.rates
    lines, agrees = against_record(_row(network, clean=network.row["clean"] - 20), NAMES[0])
    assert not agrees
    assert ["DIFFERS" in line for line in lines] == [c == "clean" for c in network.rates]


def test_a_worst_case_with_the_checks_adversarials_waits_for_a_checked_one() -> None:
    network = zoo.find("mnist/lenet-rgsm71")
    assert network.row["worst_n"] < network.row["n"]
    unchecked = _row(network).drop(columns=["verdict", "worst_n"]).assign(worst=network.row["ifgsm20"])
    lines, agrees = against_record(unchecked, network.name)
    assert agrees
    assert "--certificate quick" in lines[-1]
    lines, agrees = against_record(_row(network), network.name)
    assert agrees
    assert f"of {network.row['worst_n']}: agrees" in lines[-1]


Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Makes a run of the digits, certified as far as a second goes or not at all."""

    def make(certificate: str) -> Path:
        config: dict[str, Any] = {
            "name": f"zoo_{certificate}",
            "data": "digits",
            "threat": {"norm": "linf", "eps": 0.1},
            "attacks": {"fgsm": "fgsm"},
            "evaluation": {"limit": 30, "certificate": certificate},
            "model": {"name": "mlp", "hidden": [8]},
            "train": {"epochs": 1, "selection": "last", "optimizer": {"name": "sgd", "lr": 0.5}},
            "runs": {"row": {}},
        }
        if certificate != "off":
            config["evaluation"]["certificate_seconds"] = 1
        out = tmp_path_factory.mktemp("runs")
        table = run_benchmark(config, out=out, jobs=1)
        folder: Path = out / config["name"] / "runs" / str(table["run_id"].iloc[0])
        return folder

    made: dict[str, Path] = {}
    return lambda certificate="quick": made.setdefault(certificate, make(certificate))


def test_a_finished_run_goes_in_and_is_evaluated(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("quick")
    folder = add(run, "digits/tiny", home=tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert [p.name for p in tmp_path.glob("digits/*")] == ["tiny"]
    monkeypatch.setattr(zoo.find, "__defaults__", (tmp_path,))
    table = evaluate("zoo:digits/tiny")  # its own attacks, images and threat
    lines, agrees = against_record(table, "digits/tiny")
    assert agrees
    assert len(lines) == 3  # clean, fgsm, worst
    recorded = zoo.find("digits/tiny").row
    assert table["fgsm"].iloc[0] == recorded["fgsm"]
    with pytest.raises(UserError, match="digits/tiny: is in the zoo"):
        add(run, "digits/tiny", home=tmp_path)


def test_a_run_that_cannot_go_in_leaves_nothing(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not checked: run its benchmark with --certificate quick"):
        add(finished("off"), "digits/unchecked", home=tmp_path)
    with pytest.raises(UserError, match="Digits: expected <data>/<network>"):
        add(finished("off"), "Digits", home=tmp_path)
    edited = tmp_path / "edited" / "runs" / finished("quick").name
    shutil.copytree(finished("quick").parents[1], tmp_path / "edited")
    (edited / "outcomes" / "clean.csv").write_text("index,correct\n")
    with pytest.raises(UserError, match=r"clean\.csv: changed since it was stored"):
        add(edited, "digits/edited", home=tmp_path / "home")
    assert not list(tmp_path.glob("**/digits/*"))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist/lenet-natural", "mnist/lenet-rgsm71", "mnist/mlp-pgd-hydra90"])
def test_numbers_are_found_again(data_root: Path, name: str) -> None:
    lines, agrees = against_record(evaluate(f"zoo:{name}", data_root=data_root, limit=500), name)
    assert agrees, lines
    assert len(lines) == len(zoo.find(name).rates)
