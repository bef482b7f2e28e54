"""What is said of Ray before anything runs on it: no package, no answer, no node, no shared folder."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from robustbench_sparse import run_benchmark
from robustbench_sparse.backends import backend_of, units
from robustbench_sparse.backends.base import Unit
from robustbench_sparse.backends.joining import check_address, on_network
from robustbench_sparse.backends.on_ray import GIB, OnRay, check_fits, fitting
from robustbench_sparse.backends.units import read_start
from robustbench_sparse.foundation.errors import UserError
from tests.helpers.small import small

NODES: list[dict[str, float]] = [
    {"CPU": 8, "memory": 32 * GIB, "node:a": 1},
    {"CPU": 16, "GPU": 4, "memory": 64 * GIB},
]


def unit(**asked: Any) -> Unit:
    return Unit(run_id="a-s0", label="a", seed=0, **asked)


@pytest.mark.parametrize(("package", "backend"), [("ray", "ray"), ("submitit", "slurm")])
def test_a_package_that_is_not_installed_is_a_line(
    package: str, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as e:
        run_benchmark(small(), out=tmp_path, backend=backend)
    assert str(e.value) == f"{package} is not installed: pip install 'robustbench_sparse[{backend}]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["ray://host:1", "host", "host:", ":7", "host:port", "http://host:80"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match="--ray-address: expected local, auto or HOST:PORT, got"):
        check_address(address)


def test_an_address_where_nothing_answers() -> None:
    with socket.socket() as taken:  # a port that is bound, and not listened to
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--ray-address 127.0.0.1:{port}: nothing answers there: "):
            check_address(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match="nothing answers there"):
        check_address("no.such.host.invalid:6379")
    with pytest.raises(UserError, match="nothing answers there"):
        check_address("127.0.0.1:99999999")


def test_what_fits_on_which_node() -> None:
    assert fitting(unit(cpus=1), NODES) == 24
    assert fitting(unit(cpus=3), NODES) == 2 + 5
    assert fitting(unit(cpus=1, gpus=0.5), NODES) == 8
    assert fitting(unit(cpus=1, memory=30), NODES) == 1 + 2
    with pytest.raises(UserError) as e:
        check_fits(unit(cpus=2, gpus=8), NODES)
    assert str(e.value) == (
        "runs.a, seed 0: takes 2 CPU, 8 GPU, which no node of the cluster has (nodes: 8 CPU, 32 GiB; 16 CPU, 4 GPU, "
        "64 GiB); see `resources` in the config"
    )
    with pytest.raises(UserError, match="100 GiB, which no node"):
        check_fits(unit(memory=100), NODES)
    with pytest.raises(UserError, match="none is there"):
        check_fits(unit(), [])
    with pytest.raises(UserError, match="no node"):  # not together on one
        check_fits(unit(cpus=20), NODES)


def test_folders_on_other_machines() -> None:
    mounts = "/dev/vda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\ntmpfs /home/me/local tmpfs rw 0 0\n"
    mounts += "x /cloud fuse.sshfs rw 0 0\n"
    assert not on_network("/tmp", mounts)
    assert on_network("/home", mounts)
    assert on_network("/home/me", mounts)
    assert not on_network("/home/me/local/ray", mounts)
    assert not on_network("/homeless", mounts)
    assert on_network("/cloud/x", mounts)


def test_a_folder_that_is_not_shared_is_found_by_the_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LATE_S", 0.1)
    home = tmp_path / "results" / "digits"
    start = home / ".units" / "0123" / "start.json"
    for made in (tmp_path, home):
        made.mkdir(parents=True, exist_ok=True)
        state, text = units.work_on(str(start), "a", 0, False)
        assert state == "error"
        assert text.startswith(f"{home}: host ")
        assert text.endswith("give --out a folder that all hosts share")
    start.parent.mkdir(parents=True)
    start.write_text('{"a": 1}')
    assert read_start(start) == {"a": 1}


def test_a_config_that_no_other_host_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnRay, "check", lambda self: None)
    raw = small()
    raw["runs"] = {"a": {"defenses": ["__main__:Mine"]}}
    import __main__
    from defenses import PGDAT

    monkeypatch.setattr(__main__, "Mine", PGDAT, raising=False)
    with pytest.raises(UserError, match=r"objects of this program, which no other host has"):
        run_benchmark(raw, out=tmp_path, backend="ray")


def test_settings_of_the_back_end() -> None:
    made = backend_of("ray", jobs=3, ray_address="10.0.0.1:6379")
    assert made == OnRay(jobs=3, address="10.0.0.1:6379")
    assert backend_of("ray") == OnRay(address="local")
    assert made.remote
