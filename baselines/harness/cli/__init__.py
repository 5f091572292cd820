"""The ``cflows`` command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

import cflows
from baselines.harness.cli import compare, data, fit, standard_streams, torchrun
from baselines.harness.cli.errors import fail, is_failed_computation, is_ours, one_line

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Bad usage ends with one line and status 2."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: done. 1: a cell failed, the report says which; or a computation, one line says why. 2: the
    command was wrong, one line says how. 130: interrupted. 141: the reader of what is printed has
    gone, as that of ``| head``.
    """
    with standard_streams.prepared():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    command = shlex.join(["cflows", *arguments])
    if torchrun.count() > 1 and options.run is not fit.fit:
        fail("several processes are for cflows fit: start this command without torchrun")
    try:
        status: int = options.run(options, command)
        return status
    except KeyboardInterrupt:
        if torchrun.speaks():
            print(f"\ninterrupted; {_what_is_left(options, command)}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "sklearn", "PIL"):
            raise
        fail(f"{error.name} is not installed: pip install 'cflows[bench]'")
    except (ValueError, OSError) as error:
        if standard_streams.failed(error) or not is_ours(error):
            raise
        fail(one_line(error))
    except RuntimeError as error:
        if not is_failed_computation(error):
            raise
        fail(one_line(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cflows",
        description="Compare continuous with discrete normalizing flows, and use them.",
    )
    parser.add_argument("--version", action="version", version=f"cflows {cflows.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (compare, fit, data):
        module.add_commands(commands)
    return parser


def _what_is_left(options: argparse.Namespace, command: str) -> str:
    if options.run in (fit.score, fit.sample):
        return "nothing was written"
    if options.run is fit.fit:
        if options.checkpoint is None:
            return "nothing was written; with --checkpoint PATH it could go on"
        from baselines.harness.estimator import commands

        if not commands.goes_on(options.checkpoint):
            return f"nothing was trained yet, the same command begins anew:\n  {command}"
    return f"nothing is lost: the same command goes on where it stopped:\n  {command}"
