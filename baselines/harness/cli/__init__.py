"""The ``cflows`` command."""

from __future__ import annotations

import argparse
import errno
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from baselines.harness.cli import standard_streams, torchrun

if TYPE_CHECKING:
    from baselines.harness.data.bounds import Pair

__all__ = ["main"]

DEFAULT_DATA = ("pinwheel", "patches4")
DEFAULT_MODELS = ("ffjord", "ffjord-matching", "maf", "iaf", "realnvp", "nice")


class _Parser(argparse.ArgumentParser):
    """Bad usage ends with one line and status 2."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message} (see {self.prog} --help)")


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
    if torchrun.count() > 1 and options.run is not _fit:
        _fail("several processes are for cflows fit: start this command without torchrun")
    try:
        status: int = options.run(options, shlex.join(["cflows", *arguments]))
        return status
    except KeyboardInterrupt:
        if torchrun.speaks():
            command = shlex.join(["cflows", *arguments])
            print(f"\ninterrupted; {_what_is_left(options, command)}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "sklearn", "PIL"):
            raise
        _fail(f"{error.name} is not installed: pip install 'cflows[bench]'")
    except (ValueError, OSError) as error:
        if standard_streams.failed(error) or not _is_ours(error):
            raise
        _fail(_said(error))
    except RuntimeError as error:
        if not _is_a_failed_computation(error):
            raise
        _fail(" ".join(str(error).split()), 1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cflows",
        description="Compare continuous with discrete normalizing flows, and use them.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, help_text in (
        ("compare", "likelihood, sampling cost and depth of several flows, in one report"),
        ("likelihood", "only the likelihood, each model at its deepest setting"),
        ("sampling", "only the cost of samples and densities, each model at its deepest setting"),
        ("depth", "only what depth buys"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        _add_comparison_options(command)
        command.set_defaults(run=_compare, comparison=name)
        if name == "depth":  # planar maps, and the one depth of a continuous flow that is no block
            command.set_defaults(models=[*DEFAULT_MODELS, "planar", "ffjord-time"])
    command = commands.add_parser("report", help="write tables and pictures again from DIR, "
                                  "or lay two directories side by side")  # fmt: skip
    command.add_argument("directory", metavar="DIR", type=Path)
    command.add_argument("other", metavar="DIR", type=Path, nargs="?",
        help="laid beside the first one; nothing is written")  # fmt: skip
    command.set_defaults(run=_report)
    for name, add_options, run, help_text in (
        ("fit", _add_fit_options, _fit, "train one model on a table, and keep it with its columns"),
        ("score", _add_score_options, _score, "the log-density of each row of a file, in nats"),
        ("sample", _add_sample_options, _sample, "rows drawn from a model, in its table's units"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        add_options(command)
        command.set_defaults(run=run)
    _add_data_commands(commands.add_parser("data", help="the data sets: list, fetch, check"))
    return parser


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action, help_text, names, names_help in (
        ("list", "what there is, its size, source and licence, and whether it is here", "*",
         "data sets (default: all)"),
        ("fetch", "download sets once; the five tables from one archive of 857 MB, converted into "
         "what is mapped into memory", "+",
         "power, gas, hepmass, miniboone, bsds300, mnist, fashion_mnist, cifar10"),
        ("check", "checksums, statistics, the log-likelihood of a Gaussian", "+",
         "data sets, or tables"),
    ):  # fmt: skip
        command = actions.add_parser(action, help=help_text, description=help_text)
        command.add_argument("names", metavar="NAME", nargs=names, help=names_help)
        command.set_defaults(run=_data, action=action)
        if action == "check":
            _add_columns(command)
        if action == "fetch":
            command.add_argument("--from", dest="given", type=Path, metavar="FILE|DIR",
                help="data.tar.gz, or the folder that was unpacked from it, in place of a "
                     "download; likewise the folder of a set of images")  # fmt: skip


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", required=True, metavar="NAME",
        help="a name of compare's, or your own FILE.py:FUNCTION or MODULE:FUNCTION")  # fmt: skip
    add("--data", required=True, metavar="NAME|FILE",
        help="a data set, or a table: .csv, .tsv, .txt (also .gz), .parquet, .feather, .npy, "
        ".npz; - for standard input")  # fmt: skip
    add("--context", nargs="+", metavar="COLUMN", default=[],
        help="columns that are given to the model and not modelled")  # fmt: skip
    add("--weights", metavar="COLUMN", help="the column that says how much each row counts, "
        "not negative and not modelled; in training, validation and the figures")  # fmt: skip
    _add_columns(command)
    _add_dequantise(command)
    _add_bounds(command)
    add("--out", required=True, type=_output, metavar="MODEL",
        help="the model's file; one that is there is replaced by the whole new one")  # fmt: skip
    add("--depth", type=int, metavar="N", help="default: the model's deepest in a comparison")
    add("--steps", type=int, metavar="N",
        help="default: the model's own, below 5000 rows fewer, or as many as --seconds "
        "allow")  # fmt: skip
    add("--seconds", type=float, metavar="S", help="training seconds at most, of which the "
        "choice that --preprocess auto makes takes about a fifth")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add("--preprocess", choices=["auto", "standardise", "whiten", "none"], default="auto",
        help="the map of the rows; auto (default) tries both on validation rows")  # fmt: skip
    add("--checkpoint", type=Path, metavar="PATH",
        help="kept while training, the choice of the map beside it in PATH.map; where they are, "
        "the same command goes on")  # fmt: skip
    add("--quick", action="store_true", help="few steps: a first look")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _add_columns(command: argparse.ArgumentParser) -> None:
    command.add_argument("--columns", nargs="+", metavar="COLUMN",
        help="the columns of a file to use (default: all)")  # fmt: skip
    command.add_argument("--drop", nargs="+", metavar="COLUMN", default=[],
        help="columns of a file to leave out")  # fmt: skip


def _add_dequantise(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dequantise", nargs="?", type=_width, const="auto", metavar="WIDTH",
        help="add uniform noise to the quantised columns of a file, as wide as the column's own "
        "steps, or of this width",
    )  # fmt: skip


def _add_bounds(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--bounds", nargs="+", type=_bound, default=[], metavar="COLUMN=LOW:HIGH",
        help="columns that no row and no sample leaves, as in wait=0: share=0:1",
    )  # fmt: skip


def _bound(text: str) -> tuple[str, Pair]:
    from baselines.harness.data.bounds import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _width(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if not 0 < width < math.inf:
        raise argparse.ArgumentTypeError(f"a width must be a positive number, got {text!r}")
    return width


def _setting(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"write KEY=VALUE, as in partition=gpu; got {text}")
    return f"slurm_{name}", int(value) if value.isdigit() else value


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, type=_output, metavar="FILE",
        help=".csv or .npy; - for standard output, as .csv")  # fmt: skip


def _output(text: str) -> Path:
    return Path("/dev/stdout" if text == "-" else text)


def _add_score_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="MODEL", type=Path)
    add("--data", required=True, type=Path, metavar="FILE",
        help="a table, as fit takes it; its columns are found by name")  # fmt: skip
    add("--context", type=Path, metavar="FILE", help="the context of a conditional model, a row "
        "for each row of --data or one for all, where --data does not hold it")  # fmt: skip
    _add_out(command)
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _add_sample_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="MODEL", type=Path)
    add("-n", type=int, required=True, metavar="N",
        help="how many rows, or how many for each row of --context")  # fmt: skip
    add("--context", type=Path, metavar="FILE", help="the context of a conditional model")
    _add_out(command)
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _add_comparison_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--data", nargs="+", metavar="NAME|FILE", default=list(DEFAULT_DATA),
        help="data sets, or tables: .csv, .tsv, .txt (also .gz), .parquet, .feather, .npy, .npz "
        f"(default: {' '.join(DEFAULT_DATA)})")  # fmt: skip
    _add_columns(command)
    _add_dequantise(command)
    _add_bounds(command)
    add("--models", nargs="+", metavar="NAME", default=list(DEFAULT_MODELS),
        help="names, the papers' presets such as maf-power among them, or functions of your own, "
        f"FILE.py:FUNCTION or MODULE:FUNCTION (default: {' '.join(DEFAULT_MODELS)})")  # fmt: skip
    add("--seeds", nargs="+", type=int, metavar="N",
        help="default: 0 1 2; 0 with --quick, and for a compare of the default data and models or "
        "of --steps")  # fmt: skip
    add("--depths", nargs="+", type=int, metavar="N",
        help="layers of discrete flows, blocks of continuous ones")  # fmt: skip
    add("--budget", type=float, metavar="SECONDS",
        help="training seconds a cell: models compared at equal wall-clock")  # fmt: skip
    sizes = command.add_mutually_exclusive_group()
    sizes.add_argument("--parameters", type=int, metavar="N",
        help="models compared at equal size: widths are solved for so that each has N parameters; "
        "beside --budget a second view of the same models")  # fmt: skip
    sizes.add_argument("--equal-parameters", action="store_const", dest="parameters", const="equal",
        help="likewise, N the median of the models' own")  # fmt: skip
    add("--steps", type=int, metavar="N", help="training steps a cell (default: each model's own; "
        "likelihood: until --patience ends it)")  # fmt: skip
    add("--patience", type=int, metavar="N",
        help="validations without a better one that end a training (default: 30)")  # fmt: skip
    add("--preprocess", choices=["auto", "standardise", "whiten"], default="auto",
        help="the map behind each model; auto (default) tries both on validation rows, and whitens "
        "with --quick")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="default: results/COMMAND, with -quick for --quick")
    add("--quick", action="store_true", help="few steps: a first look in about two minutes")
    add("--jobs", type=int, metavar="N",
        help="cells trained at a time, one thread each (default: the processors)")  # fmt: skip
    add("--executor", choices=["local", "slurm", "submitit-local", "submitit-debug"],
        default="local", metavar="local|slurm",
        help="slurm: each cell a job of a cluster, by submitit")  # fmt: skip
    add("--slurm", nargs="+", type=_setting, metavar="KEY=VALUE", default=[],
        help="of its jobs: partition=gpu time=600 account=...")  # fmt: skip
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _compare(options: argparse.Namespace, command: str) -> int:
    _refuse_numbers(options, "--steps", "--budget", "--jobs", "--patience")
    if options.parameters != "equal":
        _refuse_numbers(options, "--parameters")
    if not all(0 <= seed < 2**63 for seed in options.seeds or ()):
        _fail(f"--seeds must lie between 0 and 2**63 - 1, got {options.seeds}")
    from baselines.harness.experiment.cell import PATIENCE
    from baselines.harness.experiment.plan import default_seeds
    from baselines.harness.experiment.run import Plan, execute

    chosen = (options.data, options.models) != (list(DEFAULT_DATA), list(DEFAULT_MODELS))
    bare = options.steps is not None or not chosen
    seeds = options.seeds or default_seeds(options.comparison, quick=options.quick, bare=bare)

    device = _device(options.device)
    jobs = options.jobs or (1 if device == "cuda" else _processors())
    if options.executor == "slurm":
        jobs = options.jobs or 0
    elif options.slurm:
        _fail("--slurm goes with --executor slurm")
    default = Path("results") / (options.comparison + ("-quick" if options.quick else ""))
    return execute(
        Plan(
            comparison=options.comparison,
            data=list(dict.fromkeys(options.data)),
            models=list(dict.fromkeys(options.models)),
            seeds=list(dict.fromkeys(seeds)),
            depths=options.depths,
            steps=options.steps,
            budget=options.budget,
            quick=options.quick,
            device=device,
            jobs=jobs,
            out=options.out or default,
            command=command,
            preprocess=options.preprocess,
            dequantise=options.dequantise,
            bounds=dict(options.bounds),
            columns=options.columns and tuple(options.columns),
            drop=tuple(options.drop),
            parameters=options.parameters,
            patience=options.patience or PATIENCE,
            executor=options.executor,
            cluster=dict(options.slurm),
        )
    )


def _fit(options: argparse.Namespace, command: str) -> int:
    _refuse_numbers(options, "--steps", "--seconds", "--depth")
    _refuse_seed(options.seed)
    from baselines.harness.estimator import commands
    from baselines.harness.estimator.task import Task

    task = Task(
        model=options.model,
        data=options.data,
        out=options.out,
        depth=options.depth,
        steps=options.steps,
        seconds=options.seconds,
        seed=options.seed,
        preprocess=options.preprocess,
        device=_device(options.device),
        checkpoint=options.checkpoint,
        quick=options.quick,
        context=tuple(options.context),
        weights=options.weights,
        dequantise=options.dequantise,
        bounds=dict(options.bounds),
        columns=options.columns and tuple(options.columns),
        drop=tuple(options.drop),
    )
    with torchrun.joined(task.device):
        commands.train(task)
    return 0


def _score(options: argparse.Namespace, command: str) -> int:
    from baselines.harness.estimator import commands

    commands.score(options.model, options.data, options.out, _device(options.device),
                 options.context)  # fmt: skip
    return 0


def _sample(options: argparse.Namespace, command: str) -> int:
    _refuse_numbers(options, "-n")
    _refuse_seed(options.seed)
    from baselines.harness.estimator import commands

    commands.sample(options.model, options.n, options.out, options.seed,
                  _device(options.device), options.context)  # fmt: skip
    return 0


def _report(options: argparse.Namespace, command: str) -> int:
    from baselines.harness.report import compare_runs, contents

    if options.other is not None:
        print(compare_runs.text(options.directory, options.other))
        return 0
    print(contents.summary(options.directory))
    try:
        page = contents.write(options.directory)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
            raise
        print(f"cflows: {_said(error)}; nothing is written", file=sys.stderr)
    else:
        print(f"\nthe report, with pictures: {page}")
    return 0


def _data(options: argparse.Namespace, command: str) -> int:
    from baselines.harness.cli import data as data_commands

    if options.action == "fetch":
        data_commands.fetch(options.names, options.given)
    elif options.action == "check":
        data_commands.check(options.names, options.columns, options.drop)
    else:
        data_commands.listing(options.names)
    return 0


def _refuse_numbers(options: argparse.Namespace, *names: str) -> None:
    """Refuse what is not positive, or not finite, where it was given."""
    for name in names:
        value = getattr(options, name.lstrip("-"))
        if value is not None and value <= 0:
            _fail(f"{name} must be positive, got {value}")
        if value is not None and not math.isfinite(value):
            _fail(f"{name} must be a finite number of seconds, got {value}")


def _refuse_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        _fail(f"--seed must lie between 0 and 2**63 - 1, got {seed}")


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        _fail("--device cuda: this machine has no GPU that torch can use; leave the option out")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _what_is_left(options: argparse.Namespace, command: str) -> str:
    if options.run in (_score, _sample) or (options.run is _fit and options.checkpoint is None):
        hint = "; with --checkpoint PATH it could go on" if options.run is _fit else ""
        return f"nothing was written{hint}"
    if options.run is _fit:
        from baselines.harness.estimator import commands

        if not commands.goes_on(options.checkpoint):
            return f"nothing was trained yet, the same command begins anew:\n  {command}"
    return f"nothing is lost: the same command goes on where it stopped:\n  {command}"


def _processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _is_ours(error: Exception) -> bool:
    from baselines.harness.data import DataError
    from baselines.harness.executors.slurm import ClusterError
    from baselines.harness.report.contents import ReportError
    from baselines.models.model import ModelError
    from cflows import LoadError

    ours = ClusterError | DataError | LoadError | ModelError | ReportError | OSError
    return isinstance(error, ours)


def _is_a_failed_computation(error: Exception) -> bool:
    from baselines import InversionError
    from cflows import ProcessError, SolverError, TrainingError

    return isinstance(error, InversionError | ProcessError | SolverError | TrainingError)


def _said(error: Exception) -> str:
    """An error as one line, that of the system with the file first."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _fail(message: str, status: int = 2) -> NoReturn:
    if torchrun.speaks():
        print(f"cflows: {message}", file=sys.stderr)
    raise SystemExit(status)
