"""Every method that comes from a paper has an entry that BibTeX can read."""

from __future__ import annotations

import re

from defenses import DEFENSES
from robustbench_sparse.config.optimizers import OPTIMIZERS
from robustbench_sparse.pages.citations import bibtex

METHODS = [*DEFENSES, "linbreg", "adabreg", "proxsgd"]
OWN = {"broken", "spectral_penalty", "target_sparsity"}  # without a paper of their own


def test_every_method_has_its_paper_or_is_named_as_without() -> None:
    text = bibtex(METHODS)
    assert text.splitlines()[-1].endswith(f": {', '.join(sorted(OWN))}")
    cited = {m for line in re.findall(r"^% ([a-z_0-9, ]+)$", text, re.M) for m in line.split(", ")}
    assert cited | OWN == {*METHODS}


def test_entries_have_all_fields_and_closed_braces() -> None:
    text = bibtex([*DEFENSES, *OPTIMIZERS])
    entries = re.findall(r"@misc\{(\w+),\n(.*?)\n\}\n", text, re.S)
    assert len(entries) == len({key for key, _ in entries}) == text.count("@misc") > 20
    for key, body in entries:
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", body, re.M))
        assert body.count("{") == body.count("}"), key
        assert fields["title"].startswith("{"), key
        assert re.fullmatch(r"(19|20)\d\d", fields["year"]), key
        assert " and " in fields["author"] or "," in fields["author"], key
        if "url" in fields:
            assert fields["url"].startswith("https://openreview.net/"), key
        else:
            assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"]), key
