"""What everything in a benchmark's folder is called; ``docs/results_format.md`` says what is in it.

No other module spells these names. They are relative to the benchmark's folder, or to a run's, with ``/`` between, as
the run's record of its files has them.
"""

from __future__ import annotations

import re

# In a benchmark's folder.
BENCHMARK = "benchmark.json"
LEADERBOARD, LEADERBOARD_SEEDS, LEADERBOARD_TEXT = (
    "leaderboard.csv",
    "leaderboard_seeds.csv",
    "leaderboard.md",
)
RUNS = "runs"
LOGS = "logs"  # of trainings, where they were asked for; nothing is read from there

# In a run's folder.
RUN = "run.json"
ENVIRONMENT = "environment.json"
CHECKPOINT = "checkpoint.pt"
HISTORY = "history.csv"
LAYERS = "layers.csv"
WEIGHTS = "model.safetensors"
LAST = "last.safetensors"  # the last epoch's network, where another was chosen
TRAINING = "training.json"
SPARSITY = "sparsity.json"
SPEED = "speed.json"
ZOO = "zoo.json"  # of a network that comes with the package: what was measured of it
ZOO_IMAGES = "images.csv"  # and that of each image
RECORD = "files.json"
OUTCOMES = "outcomes"
CLEAN = "clean"  # the outcome that no attack was made for
TRAINED = (HISTORY, LAYERS, WEIGHTS, LAST, TRAINING)  # what training leaves

# Of a certificate; what is hidden is a state that a killed examination goes on from.
CERTIFICATE = "certificate/certificate.json"
FOUND = "certificate/found.csv"
ADVERSARIALS = "certificate/adversarials.safetensors"
CERTIFIED = (CERTIFICATE, FOUND, ADVERSARIALS)
EXAMINING = "certificate/.parts"

# Of adversarials that others sent in.
CHALLENGES = "challenges"


def verdicts(label: str) -> str:
    """An outcome's table, one line per image."""
    return f"{OUTCOMES}/{label}.csv"


def account(label: str) -> str:
    """How an outcome came about."""
    return f"{OUTCOMES}/{label}.json"


def challenge(name: str) -> tuple[str, str, str]:
    """Of a challenge: what it was, the verdicts that it lowers, the images themselves."""
    return tuple(f"{CHALLENGES}/{name}{end}" for end in (".json", ".csv", ".safetensors"))  # type: ignore[return-value]


def challenge_of(name: str) -> str | None:
    """What a challenge is called, by the name of its account; None for any other file's."""
    found = re.fullmatch(rf"{CHALLENGES}/([0-9a-f]+)\.json", name)
    return None if found is None else found[1]


def snapshot(stage: int, passed: int) -> str:
    """The deployed network after so many epochs of a stage."""
    return f"snapshots/{stage}-{passed}.safetensors"


def snapshot_of(name: str) -> tuple[int, int] | None:
    """Stage and epochs passed of a snapshot's name; None for any other file's."""
    found = re.fullmatch(r"snapshots/(\d+)-(\d+)\.safetensors", name)
    return None if found is None else (int(found[1]), int(found[2]))


def parts(label: str) -> str:
    """The folder of an outcome's batches while it is being made."""
    return f"{OUTCOMES}/.{label}.parts"
