"""Continuous normalizing flows, and the vocabulary they share with the discrete ones.

``forward`` is noise to data, ``inverse`` is data to noise, everywhere.
"""

from ._version import __version__
from .bases import Base, Normal
from .bijector import Bijector, Chain, Inverse
from .continuous import ODEBijector
from .divergence import value_and_divergence
from .elementwise import Affine, DiagonalScale
from .ffjord import FFJORD
from .fields import MLP
from .flow import Flow, FlowDistribution, log_likelihood
from .grids import SolveStats
from .loop import History, TrainingError
from .normalization import BatchNorm
from .preprocessing import Whitening, standardise, whiten
from .solvers import Adaptive, FixedGrid, Lagged, SolverError
from .storage import LoadError, load, register
from .training import fit

__all__ = [
    "FFJORD",
    "MLP",
    "Adaptive",
    "Affine",
    "Base",
    "BatchNorm",
    "Bijector",
    "Chain",
    "DiagonalScale",
    "FixedGrid",
    "Flow",
    "FlowDistribution",
    "History",
    "Inverse",
    "Lagged",
    "LoadError",
    "Normal",
    "ODEBijector",
    "SolveStats",
    "SolverError",
    "TrainingError",
    "Whitening",
    "__version__",
    "fit",
    "load",
    "log_likelihood",
    "register",
    "standardise",
    "value_and_divergence",
    "whiten",
]
