"""What depth buys: layers of discrete flows, blocks of continuous ones.

    python benchmarks/depth_scaling.py
    python benchmarks/depth_scaling.py --quick

The same as ``cflows depth``, whose options it takes; one cell at a time unless --jobs says
otherwise, so that seconds are comparable. With --quick, a first look, as many as there are
processors and, without --data and --models, pinwheel with three models. The report goes to
results/depth_scaling, or where --out says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common import comparison

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the command's exit status."""
    return comparison("depth", "depth_scaling", argv, ("ffjord", "maf", "realnvp"))


if __name__ == "__main__":
    sys.exit(main())
