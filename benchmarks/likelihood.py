"""How likely held-out rows are under each model, at its deepest setting.

    python benchmarks/likelihood.py
    python benchmarks/likelihood.py --quick

The same as ``cflows likelihood``, whose options it takes; one cell at a time unless --jobs says
otherwise, so that seconds are comparable. With --quick and no --data, pinwheel alone. The report
goes to results/likelihood, or where --out says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from baselines.harness.cli import main as command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the command's exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--out" not in given:
        given += ["--out", "results/likelihood" + ("-quick" if "--quick" in given else "")]
    if "--quick" in given and "--data" not in given:
        given += ["--data", "pinwheel"]
    if "--jobs" not in given:
        given += ["--jobs", "1"]
    return command(["likelihood", *given])


if __name__ == "__main__":
    sys.exit(main())
