"""Which pictures a directory of cells can fill, under which names, with which captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from baselines.harness.metrics.depth import END_TIME
from baselines.harness.plots import curves, likelihood_cost
from baselines.harness.plots.curves import Line
from baselines.harness.plots.evaluations import evaluations
from baselines.harness.plots.images import sheets
from baselines.harness.plots.style import encode
from baselines.harness.report.scaling_tables import per_1000
from baselines.harness.results import layout, load
from baselines.harness.results.aggregate import Group, by_dataset, deepest
from baselines.harness.results.load import Measured, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "has_matplotlib", "pictures"]

_AXES = {"features": "dimension D", "depth": "depth K (layers; blocks of FFJORD)"}
_WHAT = {END_TIME: "end time"}  # of a continuous model whose depth counts no blocks


def has_matplotlib() -> bool:
    """Tell whether pictures can be drawn at all."""
    return find_spec("matplotlib") is not None


class Picture(NamedTuple):
    """A picture of a report: the stem of its files, a caption, and both files."""

    stem: str
    caption: str
    png: bytes
    svg: bytes
    leads: str | None  # the data set at whose head it stands, "" for the head of the report


def pictures(results: Results) -> Iterator[Picture]:
    """Yield every picture that the results can fill."""
    if not has_matplotlib():
        return
    for stem, caption, figure, leads in _figures(results):
        if figure is not None:
            yield Picture(stem, caption, *encode(figure), leads)


def _figures(results: Results) -> Iterator[tuple[str, str, Figure | None, str | None]]:
    named = [s for s in results.settings if s.dataset]
    yield (
        "likelihood",
        "Test log-likelihood of each model at its deepest; the dashed lines are the closed "
        "forms, which a flow must beat. An arrow stands for what lies far below.",
        likelihood_cost.likelihood(named),
        None,
    )
    yield (
        "front",
        "Likelihood against the cost of sampling: every model at every depth, the deepest with its "
        "number of layers or blocks. The line joins those that no other beats in both; an arrow, "
        "with its log-likelihood, stands for what lies far below.",
        curves.front(named),
        "",
    )
    yield (
        "cost",
        "What a sample costs against what a density costs; the thin line joins a model's depths.",
        likelihood_cost.cost(named),
        None,
    )
    histories = load.histories(results)
    yield (
        "training",
        "Validation log-likelihood while training, each model at its deepest, a line a seed; the "
        "lowest tenth of the points may lie below the panel.",
        curves.training(named, histories),
        None,
    )
    yield (
        "nfe",
        "Network evaluations an optimiser step of the continuous flows, while training.",
        curves.nfe_in_training(named, histories),
        None,
    )
    yield (
        "evaluations",
        "How far log-densities are from those of a fine solve, against the network evaluations of a"
        " solve, on validation rows: grids dashed, schemes that were fitted to the field solid, "
        "ringed the one that the model evaluates with.",
        evaluations(load.measured(results, layout.SOLVERS)),
        None,
    )
    for name, axis in _AXES.items():
        lines = load.records(results.directory / layout.sweep(name))
        yield (
            f"growth_{name}",
            f"Cost against {axis.split(' ')[0]}, untrained models; an autoregressive flow's slow "
            "direction is solid where it is cached, dashed with open marks where sequential.",
            curves.growth(lines, axis, results.labels),
            None,
        )
    taken: set[str] = set()
    stepped = load.measured(results, layout.STEPS)
    for name, groups in by_dataset(results.settings).items():
        if not name:
            continue
        stem = _stem(name, taken)
        yield (
            f"depth_{stem}",
            f"{name}: what depth buys. Layers and evaluations are different things: each family "
            "has its own axis.",
            curves.depth_curves(*_lines(groups, stepped.get(name, [])), name),
            None,
        )
        drawn = [(s, d) for s in deepest(groups) if (d := load.drawn(results, s)) is not None]
        yield (
            f"images_{stem}",
            f"{name}: test images, and images that each model drew, none chosen.",
            sheets(
                [("Data", d["data"]) for _, d in drawn[:1]] + [(s, d["drawn"]) for s, d in drawn]
            ),
            name,
        )
        columns = [(s, p) for s in deepest(groups) if (p := load.picture(results, s))]
        if columns:
            data = next((p["data"] for _, p in columns if "data" in p), None)
            yield (
                f"densities_{stem}",
                f"{name}: densities above, samples below, at each model's deepest.",
                likelihood_cost.densities(columns, data),
                name,
            )
            yield (
                f"trajectories_{stem}",
                f"{name}: paths of the continuous flows from noise to data.",
                curves.trajectories(columns),
                None,
            )


def _lines(groups: Sequence[Group], stepped: Measured) -> tuple[list[Line], list[Line]]:
    """The curves of discrete and of continuous flows; a continuous one is told by its gap."""
    discrete: list[Line] = []
    continuous: list[Line] = []
    keys = ((s.model, s.label, s.view) for s in groups if s.depth is not None)
    for model, label, view in dict.fromkeys(keys):
        own = [s for s in groups if (s.model, s.view) == (model, view) and s.rows]
        if any(s.mean("solver_gap") is not None for s in own):
            points = [(float(nfe), _measures(s)) for s in own if (nfe := s.mean("nfe_density"))]
            continuous.append(Line(model, label, _WHAT.get(model, "blocks"), points))
        else:
            points = [(float(s.depth or 0), _measures(s)) for s in own]
            discrete.append(Line(model, label, "layers", points))
    for s, lines in stepped:
        points = []
        for r in lines:
            values = {name: r[name] for name in ("test_log_prob", "round_trip_error")}
            values |= {f"{what}_ms_per_1000": per_1000(r[what]) for what in ("density", "sample")}
            points.append((float(r["density"]["nfe_call"]), values))
        continuous.append(Line(s.model, s.label, "solver steps", points))
    return discrete, continuous


def _measures(s: Group) -> dict[str, float | None]:
    return {
        "test_log_prob": s.likelihood[0],
        "round_trip_error": s.largest("round_trip_error"),
        "density_ms_per_1000": s.mean("density_ms_per_1000"),
        "sample_ms_per_1000": s.mean("sample_ms_per_1000"),
    }


def _stem(name: str, taken: set[str]) -> str:
    """Return a file name that no data set can lead out of the directory, nor share with another."""
    stem = base = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]
    while stem.lower() in taken:
        stem = f"{base}_{len(taken) + 1}"
    taken.add(stem.lower())
    return stem
