"""Data sets of other packages, found by their entry points in the group ``cflows.data``.

Each names an ``Entry``, as in a package's pyproject.toml:

    [project.entry-points."cflows.data"]
    clouds = "clouds.cflows:entry"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from baselines.harness.data.dataset import DataError, Entry

__all__ = ["GROUP", "entered", "installed"]

GROUP = "cflows.data"


def installed() -> dict[str, EntryPoint]:
    """Return the entry points by name; nothing is imported for it."""
    return {point.name: point for point in entry_points(group=GROUP)}


def entered(point: EntryPoint) -> Entry:
    """Return the entry that an entry point names.

    Raises:
        DataError: it cannot be imported, or is something else.

    """
    try:
        found = point.load()
    except Exception as error:  # whatever a package does when it is imported
        raise DataError(
            f"the data set {point.name} ({point.value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Entry):
        raise DataError(
            f"the data set {point.name} ({point.value}) is a {type(found).__name__}; the entry "
            "point must name a baselines.harness.data.Entry"
        )
    return found
