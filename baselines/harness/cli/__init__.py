"""The ``cflows`` command."""

from __future__ import annotations

import argparse
import pkgutil
import shlex
import sys
from collections.abc import Sequence

from baselines.harness.cli import standard_streams, torchrun
from baselines.harness.cli.errors import fail, one_line, status_of
from baselines.harness.cli.options import available_device, parser, refuse_numbers

__all__ = ["main"]


@standard_streams.prepared()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: done. 1: a cell failed, the report says which; or a computation, one line says why. 2: the
    command was wrong, one line says how. 130: interrupted. 141: the reader of what is printed has
    gone, as that of ``| head``.
    """
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    options.command = shlex.join(["cflows", *arguments])
    if torchrun.count() > 1 and options.name != "fit":
        fail("several processes are for cflows fit: start this command without torchrun")
    refuse_numbers(options)
    if "device" in options:
        options.device = available_device(options.device)
    try:
        run = pkgutil.resolve_name(f"{__name__}.{options.run}")
        return run(options) or 0
    except KeyboardInterrupt:
        if torchrun.speaks():
            print(f"\ninterrupted; {_what_is_left(options)}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "sklearn", "PIL"):
            raise
        fail(f"{error.name} is not installed: pip install 'cflows[bench]'")
    except Exception as error:
        if (code := status_of(error)) is None:
            raise
        fail(one_line(error), code)


def _what_is_left(options: argparse.Namespace) -> str:
    if options.name in ("score", "sample"):
        return "nothing was written"
    if options.name == "fit":
        if options.checkpoint is None:
            return "nothing was written; with --checkpoint PATH it could go on"
        from baselines.harness.estimator.fit import goes_on

        if not goes_on(options.checkpoint):
            return f"nothing was trained yet, the same command begins anew:\n  {options.command}"
    return f"nothing is lost: the same command goes on where it stopped:\n  {options.command}"
