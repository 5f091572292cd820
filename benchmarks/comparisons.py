"""A comparison of ``cflows``, one cell at a time, so that seconds are comparable.

    python benchmarks/comparisons.py likelihood
    python benchmarks/comparisons.py sampling --quick
    python benchmarks/comparisons.py depth --quick

``likelihood``: how likely held-out rows are under each model, at its deepest setting; ``sampling``:
what a density and a sample cost; ``depth``: what layers of discrete and blocks of continuous flows
buy. Each takes the options of the command. Without --jobs cells run one at a time; with --quick, a
first look, as many as there are processors and, without --data and --models, on pinwheel and, for
``depth``, with three models. The report goes to results/COMMAND, or where --out says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from baselines.harness.cli import main as cflows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the command's exit status."""
    command, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    quick = "--quick" in options
    defaults = {"--data": ["pinwheel"]} if quick else {"--jobs": ["1"]}
    defaults["--out"] = [f"results/{command}" + "-quick" * quick]
    if quick and command == "depth":
        defaults["--models"] = ["ffjord", "maf", "realnvp"]
    for name, values in defaults.items():
        if name not in options:
            options += [name, *values]
    return cflows([command, *options])


if __name__ == "__main__":
    sys.exit(main())
