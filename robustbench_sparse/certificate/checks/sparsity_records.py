"""Checks S: are the weights that are counted those that were judged?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import prunable
from robustbench_sparse.certificate.checks.attack_records import LISTED, OWN
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import fill, load_weights, read_json, sha256
from robustbench_sparse.foundation.paired import compare
from robustbench_sparse.runs import names
from robustbench_sparse.runs.rebuild import architecture, has_recipe
from robustbench_sparse.sparsity.claims import POINTS
from robustbench_sparse.sparsity.counting import count_sparsity
from robustbench_sparse.sparsity.shrink.proof import TOLERANCE, differences

# S4: of a network that surgery is tried on; 50 000 took 8 s on one core of an AMD EPYC.
MOST_CHANNELS = 300_000


def sparsity_is_in_the_file(s: Subject) -> Finding:
    """Recount from the file."""
    claims, path = s.context.claims, _weights_of(s)
    if claims is None or path is None:
        return skipped("nothing claimed, or no file of weights")
    done = f"zeros, parameters and multiply-accumulates counted in {path.name}"
    try:
        weights = load_weights(path)
        model = _network_of(s)
        fill(model, weights, path)
    except UserError as e:
        return Finding(status="failed", done=done, why=str(e))
    counted = count_sparsity(model.cpu(), s.x.shape[1], s.x.shape[2])
    tensors = [weights[name] for name in prunable(model)]
    zeros, whole = sum(int((w == 0).sum()) for w in tensors), sum(w.numel() for w in tensors)
    plainly = 100 * zeros / whole if whole else None
    wrong = _wrong_claims(claims, counted)
    if not _near(counted["weight_sparsity"], plainly):
        wrong.append("weight_sparsity (two ways of counting differ)")
    names = [k for k in counted if k != "layers" and k in claims]
    if not names:
        return skipped("nothing is claimed that could be counted")
    measured: dict[str, Value] = {name: counted[name] for name in names}
    measured |= {f"claimed {name}": claims[name] for name in names}
    return ruled(not wrong, done, {**measured, "zeros in the file": zeros, "wrong": wrong})


SPARSITY_IS_IN_THE_FILE = Check(
    id="S1",
    title="the sparsity is in the file",
    source=f"{OWN}; after published pruning code whose networks hold fewer zeros than asked for",
    rule=f"percentages counted in the saved file within {POINTS} points of those claimed; parameters and "
    "multiply-accumulates equal; zero weights counted a second time, straight from the tensors",
    meaning="The row's sparsity is wrong.",
    advice="Count again from the file: delete sparsity.json and run the benchmark.",
    run=sparsity_is_in_the_file,
    refutes=True,
)


def _near(first: float | None, second: float | None) -> bool:
    # The slack is for binary fractions: 80.1 - 80.0 is above 0.1 in floating point.
    return first == second or (
        first is not None and second is not None and abs(first - second) <= POINTS + 1e-9
    )


def _wrong_claims(claims: Mapping[str, Any], counted: Mapping[str, Any]) -> list[str]:
    shares = [k for k in counted if k.endswith("_sparsity") and k in claims]
    wrong = [k for k in shares if not _near(claims[k], counted[k])]
    wrong += [k for k in ("parameters", "macs") if k in claims and claims[k] != counted[k]]
    for name, of in (("nonzero_parameters", "parameters"), ("sparse_macs", "macs")):
        claimed, slack = claims.get(name), POINTS / 100 * max(counted[of], 1)
        if claimed is not None and abs(claimed - counted[name]) > slack:
            wrong.append(name)
    return wrong


def _weights_of(s: Subject) -> Path | None:
    if s.context.weights is not None:
        return s.context.weights
    path = s.context.folder / names.WEIGHTS if s.context.folder is not None else None
    return path if path is not None and path.is_file() else None


def _network_of(s: Subject) -> nn.Module:
    """A network to fill: built from the run's record, or a copy of a foreign one."""
    if s.context.folder is not None and has_recipe(s.context.folder):
        return architecture(s.context.folder, s.x.shape[1], s.x.shape[2], s.classes)
    return copy.deepcopy(s.model)


def counted_network_was_attacked(s: Subject) -> Finding:
    """One file for the zeros and for the correct."""
    path = _weights_of(s)
    if path is None:
        return skipped("no file of weights")
    try:
        stored = load_weights(path)
    except UserError as e:
        return Finding(status="failed", done=f"{path.name} read", why=str(e))
    own = s.model.state_dict()
    different = [name for name in {**own, **stored} if not _equal(own.get(name), stored.get(name))]
    others, looked = _other_weights(s, sha256(path))
    measured: dict[str, Value] = {
        "different tensors": different[:LISTED],
        "outcomes of other weights": others[:LISTED],
        "outcomes": looked,
        "zeros in the file": sum(int((w == 0).sum()) for w in stored.values()),
        "zeros in the network": sum(int((w == 0).sum()) for w in own.values()),
    }
    done = f"{len(own)} tensors and the hashes kept with {looked} outcomes against {path.name}"
    return ruled(not different and not others, done, measured)


COUNTED_NETWORK_WAS_ATTACKED = Check(
    id="S2",
    title="what is counted is what was attacked",
    source=f"{OWN}; after published code that prunes, and then tests the dense network",
    rule="the network examined equals the saved file bit for bit; the hash kept with each outcome is the file's",
    meaning="Sparsity and robustness belong to different networks.",
    advice="Delete the folder outcomes and judge the saved file.",
    run=counted_network_was_attacked,
    refutes=True,
)


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None or first.dtype != second.dtype:
        return False
    return torch.equal(first.cpu(), second.cpu())


def _other_weights(s: Subject, digest: str) -> tuple[list[str], int]:
    """Outcomes of the row that were made on another file, and how many were looked at."""
    if s.context.folder is None:
        return [], 0
    labels = ["clean", *(p.label for p in s.context.plans)]
    paths = [s.context.folder / names.account(label) for label in labels]
    about = {path.stem: read_json(path) for path in paths if path.is_file()}
    identity = {label: str(a.get("key", {}).get("identity", "")) for label, a in about.items()}
    return [label for label, name in identity.items() if name.split("/")[0] != digest], len(about)


def pruning_turns_images(s: Subject) -> Finding:
    """Image by image against the dense parent."""
    if s.context.parent is None:
        return skipped("no dense parent is known")
    label, network = s.context.parent
    parent = s.beside(network)
    # One attack, the same for both: the smallest verdict of many flatters the network that was attacked less.
    correct = []
    for one in (s, parent):
        kind, attack = one.battery()[1]
        correct.append(one.attack(attack, f"s3/{kind}").correct)
    pair = compare(correct[0].tolist(), correct[1].tolist())
    measured: dict[str, Value] = {
        "acc": correct[0].mean().item(),
        "parent_acc": correct[1].mean().item(),
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
        "lost_count": len(pair.won),
        "won_count": len(pair.lost),
        "lost": s.indices(torch.tensor(pair.won[:LISTED], dtype=torch.long)),
        "won": s.indices(torch.tensor(pair.lost[:LISTED], dtype=torch.long)),
    }
    word = "better" if pair.difference > 0 else "worse"
    verdict = (
        f"{word} than {label}" if pair.p < 0.05 else f"neither better nor worse than {label} (p >= 0.05)"
    )
    done = f"APGD-{s.budget.steps} on the margin, the same for {label} and this row, on {len(s)} images"
    return Finding(status="reported", done=done, measured=measured, why=verdict)


PRUNING_TURNS_IMAGES = Check(
    id="S3",
    title="which images pruning turned",
    source='Piras et al. 2023, "Samples on Thin Ice" (arXiv 2310.08073); McNemar 1947',
    rule="reported: McNemar's p under one attack, the same for both; no `better` without p < 0.05",
    meaning="Images near the boundary flip either way; a gain that is no more than these flips is none.",
    advice="Where p >= 0.05, judge more images before calling one of the two better.",
    run=pruning_turns_images,
)


def dead_channels_change_nothing(s: Subject) -> Finding:
    """The network without its dead channels."""
    try:
        small = _shrunk(s)
    except UserError as e:  # no torch-pruning, or a forward pass that cannot be traced
        return skipped(str(e))
    if small is None:
        return skipped("no channels were removed: the masked network itself is judged")
    difference, allowed = differences(s.model, small, s.x, lambda: s.random("s4"))
    how = "noise off, and with equal noise on" if s.stochastic else "noise off"
    done = f"logits of the masked and the shrunk network on {len(s)} images, {how}"
    measured: dict[str, Value] = {"largest difference": difference, "allowed": allowed}
    for name, network in (("parameters", s.model), ("parameters left", small)):
        measured[name] = sum(p.numel() for p in network.parameters())
    return ruled(difference <= allowed, done, measured)


DEAD_CHANNELS_CHANGE_NOTHING = Check(
    id="S4",
    title="removing dead channels changes nothing",
    source=OWN,
    rule=f"largest difference of the logits <= {TOLERANCE} (times the largest logit, where that is above 1)",
    meaning="The shrunk network computes something else; speed and accuracy belong to different networks.",
    advice="Look at what a dead channel still adds: biases, and batch-norm's shift.",
    run=dead_channels_change_nothing,
    refutes=True,
)


def _shrunk(s: Subject) -> nn.Module | None:
    """The network without its dead channels; None where it has none."""
    from robustbench_sparse.sparsity.shrink.surgery import shrink_network

    found = shrink_network(s.model, s.x[:1], MOST_CHANNELS)
    return found.model if found.removed else None


CHECKS: tuple[Check, ...] = (
    SPARSITY_IS_IN_THE_FILE,
    COUNTED_NETWORK_WAS_ATTACKED,
    PRUNING_TURNS_IMAGES,
    DEAD_CHANNELS_CHANGE_NOTHING,
)
