"""The suite's counts beside the committed ones: a change that adds work fails here by name.

    python benchmarks/counts.py --check
    python benchmarks/counts.py --write

``counts.json`` is written again only with the reason in the commit. Counts are evaluations of
fields and networks, matrix products, draws, host synchronisations and parameters; see
``perf/counts.py``. None is a time.
"""

from __future__ import annotations

import inspect
import itertools
import json
import sys
from pathlib import Path

import torch
from common import parser_of
from perf import counts
from perf.base import Suite

from cflows.core.atomic_write import write_whole

COMMITTED = Path(__file__).parent / "counts.json"

Counts = dict[str, int | str]


def measured(containing: str = "") -> Counts:
    """Every count with this in its name; one that raises is its error in words."""
    values: Counts = {}
    for title, suite in inspect.getmembers(counts, inspect.isclass):
        if not issubclass(suite, Suite) or title.startswith("_") or suite is Suite:
            continue
        for method in (name for name in dir(suite) if name.startswith("track_")):
            for setting in itertools.product(*suite.params):
                words = ", ".join(map(str, setting))
                name = f"{title}.{method.removeprefix('track_')} ({words})"
                if containing not in name:
                    continue
                case = suite()
                try:
                    case.setup(*setting)
                    values[name] = int(getattr(case, method)(*setting))
                except Exception as error:  # one count that fails must not hide the others
                    values[name] = f"{type(error).__name__}: {error}"
    return values


def differences(measured: Counts, committed: Counts) -> list[str]:
    """One line for each count that is another, new or gone."""
    lines = []
    for name in sorted({*measured, *committed}):
        before, now = committed.get(name, "not committed"), measured.get(name, "not counted")
        if before != now:
            lines.append(f"{name}: committed {before}, now {now}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Compare or write; 1 where a count differs."""
    parser = parser_of(__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare with counts.json")
    action.add_argument("--write", action="store_true", help="write counts.json again")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    now = measured()
    if options.write:
        failed = [f"{name}: {value}" for name, value in now.items() if isinstance(value, str)]
        if failed:
            print(*failed, "nothing was written", sep="\n", file=sys.stderr)
            return 1
        write_whole(COMMITTED, json.dumps(now, indent=1) + "\n")
        print(f"{len(now)} counts written")
        return 0
    lines = differences(now, json.loads(COMMITTED.read_text(encoding="utf-8")))
    if not lines:
        print(f"{len(now)} counts as committed")
        return 0
    mend = "`python benchmarks/counts.py --write` and give the reason in the commit"
    lines.append(f"{len(lines)} of {len(now)} counts differ: mend it, or run {mend}")
    print(*lines, sep="\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
