"""A model's card: what it is, how it was trained and judged, and what is known against it; Markdown and JSON."""

from __future__ import annotations

from typing import Any

from robustbench_sparse.foundation.texts import markdown
from robustbench_sparse.pages.methods import division_of, fraction, structure_of
from robustbench_sparse.pages.rows import Row

FORMAT = 1


def card_of(row: Row) -> dict[str, Any]:
    """A row's card as plain values."""
    facts = row.entry.row
    rates = {
        rate: {"value": facts[rate], "low": facts.get(f"{rate}_lo"), "high": facts.get(f"{rate}_hi")}
        for rate in row.entry.rates
    }
    proof = row.proof
    return {
        "format": FORMAT,
        "id": row.id,
        "run": facts["run"],
        "benchmark": facts["benchmark"],
        "seed": facts.get("seed"),
        "run_id": facts.get("run_id"),
        "model": facts.get("model", ""),
        "methods": list(row.entry.methods),
        "settings": facts.get("defenses", ""),
        "training": division_of(row.entry.methods, facts),
        "precision": facts.get("precision", ""),
        "dataset": facts.get("dataset", ""),
        "images": facts.get("n"),
        "threat": {"norm": row.entry.norm, "eps": row.entry.eps},
        "rates": rates,
        "worst_images": facts.get("worst_n"),
        "rank": {"low": facts.get("rank"), "high": facts.get("rank_high")},
        "verdict": facts.get("verdict", ""),
        "protocol": facts.get("protocol", ""),
        "failed_checks": [
            {"id": i.id, "title": i.title, "found": i.found, "repair": i.repair}
            for i in (proof.failed if proof else ())
        ],
        "sparsity": {
            k: v for k, v in facts.items() if k.endswith("_sparsity") and not k.startswith("published_")
        },
        "structure_of_zeros": structure_of(facts),
        "size": {
            k: facts[k] for k in ("parameters", "nonzero_parameters", "macs", "sparse_macs") if k in facts
        },
        "commit": facts.get("commit", ""),
        "date": row.entry.date,
        "status": facts.get("status", ""),
    }


def card_text(row: Row) -> str:
    """The card as Markdown."""
    card = card_of(row)
    eps = card["threat"]["eps"]
    threat = "" if eps is None else f"{card['threat']['norm']}, eps = {fraction(eps)}"
    about = {
        "Model": card["model"], "Methods": card["settings"] or "none", "Training": card["training"],
        "Data": f"{card['dataset']}, {card['images']} test images", "Threat": threat, "Verdict": card["verdict"],
        "Protocol": card["protocol"], "Zeros": card["structure_of_zeros"], "Commit": card["commit"],
        "Date": card["date"], "Status": card["status"],
    }  # fmt: skip
    lines = [
        f"# {markdown(card['run'])}, seed {card['seed']}",
        "",
        f"A row of the benchmark {markdown(card['benchmark'])}.",
        "",
    ]
    lines += [f"* {name}: {markdown(value)}" for name, value in about.items() if value not in ("", None)]
    lines += ["", "| rate | percent or error | 95 % interval |", "| --- | ---: | --- |"]
    for rate, value in card["rates"].items():
        lines.append(
            f"| {markdown(rate)} | {value['value']:.4g} | {value['low']:.4g} to {value['high']:.4g} |"
        )
    counted = {**card["sparsity"], **card["size"]}
    lines += ["", "| counted in the file | |", "| --- | ---: |"]
    lines += [f"| {markdown(k.replace('_', ' '))} | {v:,} |" for k, v in counted.items()]
    lines += ["", "## What is known against it", ""]
    failed = [f"* {i['id']}, {markdown(i['title'])}: {markdown(i['repair'])}" for i in card["failed_checks"]]
    lines += failed or [
        "No check failed." if card["verdict"] not in ("", "not checked") else "Nothing examined it."
    ]
    lines += [
        "",
        "A robust accuracy is an upper bound: the share of test images that no attack broke so far.",
        "",
    ]
    return "\n".join(lines)
