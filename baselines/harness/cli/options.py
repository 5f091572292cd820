"""The commands and their options: each as it is typed, with its help."""

from __future__ import annotations

import argparse
import inspect
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

import cflows
from baselines.harness.cli.errors import fail

if TYPE_CHECKING:
    from baselines.harness.data.bounds import Pair

__all__ = [
    "DEFAULT_DATA",
    "DEFAULT_MODELS",
    "available_device",
    "filled",
    "parser",
    "refuse_numbers",
    "usual_jobs",
]

T = TypeVar("T")
Options: TypeAlias = Mapping[str, "str | Options"]
"""Usage -> help, as ``_add_options`` reads it; options within one of these exclude each other."""

DEFAULT_DATA = ["pinwheel", "patches4"]
DEFAULT_MODELS = ["ffjord", "ffjord-matching", "maf", "iaf", "realnvp", "nice"]
SEEDS = 2**63

COLUMNS = {
    "--columns COLUMN ...": "the columns of a file to use (default: all)",
    "--drop COLUMN ...": "columns of a file to leave out",
}
TABLE = {
    **COLUMNS,
    "--dequantise [WIDTH]": "add uniform noise to the quantised columns of a file, as wide as the "
    "column's own steps, or of this width",
    "--bounds COLUMN=LOW:HIGH ...": "columns that no row and no sample leaves, as in wait=0: "
    "share=0:1",
}
DEVICE = {"--device {auto,cpu,cuda}": ""}
COMPARE: Options = {
    "--data NAME|FILE ...": "data sets, or tables: .csv, .tsv, .txt (also .gz), .parquet, "
    f".feather, .npy, .npz (default: {' '.join(DEFAULT_DATA)})",
    **TABLE,
    "--models NAME ...": "names, the papers' presets such as maf-power among them, or functions of "
    f"your own, FILE.py:FUNCTION or MODULE:FUNCTION (default: {' '.join(DEFAULT_MODELS)})",
    "--seeds N ...": "default: 0 1 2; 0 with --quick, and for a compare of the default data and "
    "models or of --steps",
    "--depths N ...": "layers of discrete flows, blocks of continuous ones",
    "--budget SECONDS": "training seconds a cell: models compared at equal wall-clock",
    "": {
        "--parameters N": "models compared at equal size: widths are solved for so that each has N "
        "parameters; beside --budget a second view of the same models",
        "--equal-parameters": "likewise, N the median of the models' own",
    },
    "--steps N": "training steps a cell (default: each model's own; likelihood: until --patience "
    "ends it)",
    "--patience N": "validations without a better one that end a training (default: 30)",
    "--preprocess {auto,standardise,whiten,gaussianise}": "the map behind each model; auto "
    "(default) tries the likeliest two on validation rows, and whitens with --quick; gaussianise "
    "also makes columns and lengths of rows normal, in closed form",
    "--out DIR": "default: results/COMMAND, with -quick for --quick",
    "--quick": "few steps: a first look in about a minute",
    "--jobs N": "cells trained at a time, one thread each (default: the processors)",
    "--executor local|slurm": "slurm: each cell a job of a cluster, by submitit",
    "--slurm KEY=VALUE ...": "of its jobs: partition=gpu time=600 account=...",
    **DEVICE,
}
FIT: Options = {
    "--model NAME!": "a name of compare's, or your own FILE.py:FUNCTION or MODULE:FUNCTION",
    "--data NAME|FILE!": "a data set, or a table: .csv, .tsv, .txt (also .gz), .parquet, .feather, "
    ".npy, .npz; - for standard input",
    "--context COLUMN ...": "columns that are given to the model and not modelled",
    "--weights COLUMN": "the column that says how much each row counts, not negative and not "
    "modelled; in training, validation and the figures",
    **TABLE,
    "--out MODEL!": "the model's file; one that is there is replaced by the whole new one",
    "--depth N": "default: the model's deepest in a comparison",
    "--steps N": "default: the model's own, below 5000 rows fewer, or as many as --seconds allow",
    "--seconds S": "training seconds at most, of which the choice that --preprocess auto makes "
    "takes a tenth",
    "--seed N": "default: 0",
    "--preprocess {auto,standardise,whiten,gaussianise,none}": "the map of the rows; auto "
    "(default) tries the likeliest two on validation rows; gaussianise also makes columns and "
    "lengths of rows normal, in closed form",
    "--checkpoint PATH": "kept while training, the choice of the map beside it in PATH.map; where "
    "they are, the same command goes on",
    "--quick": "few steps: a first look",
    **DEVICE,
}
OUT = {"--out FILE!": ".csv or .npy; - for standard output, as .csv"}
SCORE: Options = {
    "model MODEL": "",
    "--data FILE!": "a table, as fit takes it; its columns are found by name",
    "--context FILE": "the context of a conditional model, a row for each row of --data or one for "
    "all, where --data does not hold it",
    **OUT,
    **DEVICE,
}
SAMPLE: Options = {
    "model MODEL": "",
    "-n N!": "how many rows, or how many for each row of --context",
    "--context FILE": "the context of a conditional model",
    **OUT,
    "--seed N": "default: 0",
    **DEVICE,
}
FETCH: Options = {
    "names NAME ...": "power, gas, hepmass, miniboone, bsds300, mnist, fashion_mnist, cifar10",
    "--from FILE|DIR": "data.tar.gz, or the folder that was unpacked from it, in place of a "
    "download; likewise the folder of a set of images",
}
TARGETS: Options = {
    "--data NAME ...": "targets (default: gaussian10 funnel10 manywell8 mixture40)",
    "--models NAME ...": "as compare's (default: iaf realnvp spline ffjord-matching)",
    "--by WAY ...": "reverse: on the flow's own draws; annealed: on rows that annealing found, by "
    "the model's own objective (default: both)",
    "--seeds N ...": "default: 0 1 2; 0 with --quick",
    "--budget SECONDS": "of a training, annealing included (default: 60; 5 with --quick)",
    "--out DIR": "default: results/targets, with -quick for --quick",
    "--quick": "few seconds and draws: a first look",
    "--jobs N": "cells trained at a time, one thread each (default: the processors)",
}
LIST = {"names [NAME ...]": "data sets (default: all)"}
CHECK = {"names NAME ...": "data sets, or tables", **COLUMNS}
REPORT = {"directory DIR": "", "other [DIR]": "laid beside the first one; nothing is written"}

COMMANDS = {
    "compare": ("compare:compare", COMPARE),
    "likelihood": ("compare:compare", COMPARE),
    "sampling": ("compare:compare", COMPARE),
    "depth": ("compare:compare", COMPARE),
    "targets": ("targets:targets", TARGETS),
    "report": ("compare:report", REPORT),
    "fit": ("fit:fit", FIT),
    "score": ("fit:score", SCORE),
    "sample": ("fit:sample", SAMPLE),
}
ACTIONS = {
    "list": ("data:listing", LIST),
    "fetch": ("data:fetch", FETCH),
    "check": ("data:check", CHECK),
}
HELP = {
    "compare": "likelihood, sampling cost and depth of several flows, in one report",
    "likelihood": "only the likelihood, each model at its deepest setting",
    "sampling": "only the cost of samples and densities, each model at its deepest setting",
    "depth": "only what depth buys",
    "targets": "flows trained on densities without rows: log Z, and what their draws are worth",
    "report": "write tables and pictures again from DIR, or lay two directories side by side",
    "fit": "train one model on a table, and keep it with its columns",
    "score": "the log-density of each row of a file, in nats",
    "sample": "rows drawn from a model, in its table's units",
    "list": "what there is, its size, source and licence, and whether it is here",
    "fetch": "download sets once; the five tables from one archive of 857 MB, converted into what "
    "is mapped into memory",
    "check": "checksums, statistics, the log-likelihood of a Gaussian",
}


class _Parser(argparse.ArgumentParser):
    """Bad usage ends with one line and status 2."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``cflows``; it sets the command's ``name`` and ``run`` too."""
    whole = _Parser(
        prog="cflows",
        description="Compare continuous with discrete normalizing flows, and use them.",
    )
    whole.add_argument("--version", action="version", version=f"cflows {cflows.__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    _add_commands(commands, COMMANDS)
    data = commands.add_parser("data", help="the data sets: list, fetch, check")
    _add_commands(data.add_subparsers(metavar="ACTION", required=True), ACTIONS)
    return whole


def _add_commands(
    parent: argparse._SubParsersAction[_Parser], commands: Mapping[str, tuple[str, Options]]
) -> None:
    for name, (run, options) in commands.items():
        description = None if name == "report" else HELP[name]
        command = parent.add_parser(name, help=HELP[name], description=description)
        command.set_defaults(name=name, run=run)
        _add_options(command, options)


def _add_options(container: argparse._ActionsContainer, options: Options) -> None:
    """Add what usages say: [V] may be left out, V ... are several, V! must be there."""
    for usage, text in options.items():
        name, _, value = usage.partition(" ")
        metavar = value.strip("[!]").removesuffix(" ...")
        if isinstance(text, Mapping):
            _add_options(container.add_mutually_exclusive_group(), text)
        elif not value:
            container.add_argument(name, action="store_true", help=text)
        else:
            choices = metavar[1:-1].split(",") if "{" in metavar else CHOICES.get(metavar)
            added = container.add_argument(
                name,
                # So that a name like an option's can follow others: --drop a b --drop=-c.
                action="extend" if value == "COLUMN ..." else "store",
                metavar=metavar,
                nargs=NARGS[value.rstrip("!").replace(metavar, "V")],
                type=TYPES.get(f"{name} {metavar}", TYPES.get(metavar, str)),
                choices=choices,
                const="auto" if value == "[WIDTH]" else None,
                default=[] if "..." in value else choices[0] if choices else None,
                help=text,
            )
            added.required = added.required or value.endswith("!")


def filled(cls: Callable[..., T], options: argparse.Namespace, **others: object) -> T:
    """What a class makes of the options that are called as its arguments, and of others."""
    values = {**vars(options), **others}
    return cls(**{name: values[name] for name in inspect.signature(cls).parameters})


def available_device(name: str) -> str:
    """``"cpu"`` or ``"cuda"``, for what --device says."""
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        fail("--device cuda: this machine has no GPU that torch can use; leave the option out")
    return ("cuda" if available else "cpu") if name == "auto" else name


def usual_jobs(device: str = "cpu") -> int:
    """How many cells are trained at a time: one on a GPU, else as many as there are processors."""
    if device == "cuda":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_numbers(options: argparse.Namespace) -> None:
    """Refuse a number that is not positive or not finite, and what torch takes for no seed."""
    for name, value in vars(options).items():
        option = "-n" if name == "n" else f"--{name}"
        if type(value) in (int, float) and name != "seed":
            if value <= 0:
                fail(f"{option} must be positive, got {value}")
            if not math.isfinite(value):
                fail(f"{option} must be a finite number of seconds, got {value}")
        seeds = value if name == "seeds" else [value] if name == "seed" and value else []
        if not all(0 <= seed < SEEDS for seed in seeds):
            fail(f"{option} must lie between 0 and 2**63 - 1, got {value}")


def _bound(text: str) -> tuple[str, Pair]:
    from baselines.harness.data.bounds import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _output(text: str) -> Path:
    return Path("/dev/stdout" if text == "-" else text)


def _setting(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"write KEY=VALUE, as in partition=gpu; got {text}")
    return f"slurm_{name}", int(value) if value.isdigit() else value


def _width(text: str) -> float | str:
    if text == "auto":
        return text
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"a width must be a positive number, got {text!r}")


NARGS = {"V": None, "V ...": "+", "[V]": "?", "[V ...]": "*"}
CHOICES = {
    "WAY": ["reverse", "annealed"],
    "local|slurm": ["local", "slurm", "submitit-local", "submitit-debug"],
}
TYPES: Mapping[str, Callable[[str], object]] = {
    "N": int,
    "S": float,
    "SECONDS": float,
    "WIDTH": _width,
    "COLUMN=LOW:HIGH": _bound,
    "KEY=VALUE": _setting,
    "DIR": Path,
    "FILE": Path,
    "FILE|DIR": Path,
    "PATH": Path,
    "model MODEL": Path,
    "--out FILE": _output,
    "--out MODEL": _output,
}
"""By what stands for a value, with the option's name or without."""
