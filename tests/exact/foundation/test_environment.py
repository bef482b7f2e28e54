"""The commit beside a number: what git says, and the version where git says nothing."""

from __future__ import annotations

import subprocess
from importlib import metadata
from typing import Any

import pytest

from robustbench_sparse.foundation import environment

VERSION = f"v{metadata.version('robustbench_sparse')}"


def _answers(monkeypatch: pytest.MonkeyPatch, status: str) -> list[list[str]]:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        said = "0123456789ab\n" if "rev-parse" in command else status
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(subprocess, "run", run)
    return asked


@pytest.mark.parametrize(
    ("status", "name"), [("", "0123456789ab"), (" M attacks/fgsm.py\n", "0123456789ab-dirty")]
)
def test_commit_and_whether_files_differ(monkeypatch: pytest.MonkeyPatch, status: str, name: str) -> None:
    asked = _answers(monkeypatch, status)
    assert environment.commit() == name
    assert all("--no-optional-locks" in command for command in asked), "rows side by side share one index"


@pytest.mark.parametrize(
    "silent",
    [
        FileNotFoundError("git"),
        subprocess.CalledProcessError(128, "git"),
        subprocess.TimeoutExpired("git", 60),
    ],
    ids=["no git", "no checkout", "a disk that hangs"],
)
def test_without_git_the_version(monkeypatch: pytest.MonkeyPatch, silent: Exception) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise silent

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.commit() == VERSION
