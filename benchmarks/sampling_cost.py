"""What a density and a sample of each model cost.

    python benchmarks/sampling_cost.py
    python benchmarks/sampling_cost.py --quick

The same as ``cflows sampling``, whose options it takes; one cell at a time unless --jobs says
otherwise, so that seconds are comparable. With --quick, a first look, as many as there are
processors and, without --data, pinwheel alone. The report goes to results/sampling_cost, or where
--out says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common import comparison

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the command's exit status."""
    return comparison("sampling", "sampling_cost", argv)


if __name__ == "__main__":
    sys.exit(main())
