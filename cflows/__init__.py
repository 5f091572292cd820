"""Continuous normalizing flows, and the vocabulary they share with the discrete ones.

``forward`` is noise to data, ``inverse`` is data to noise, everywhere.
"""

from ._version import __version__
from .bases import Base, Logistic, MixtureOfGaussians, Normal, StudentT
from .bijector import Bijector, Chain, Inverse
from .bounded import Bounded
from .continuous import ODEBijector
from .distributed import ProcessError
from .divergence import value_and_divergence
from .elementwise import Affine, DiagonalScale, ElementwiseAffine, LeakyReLU, SinhArcsinh
from .f_divergences import AlphaDivergence, ChiSquare, JensenShannon
from .ffjord import FFJORD
from .fields import MLP
from .flow import Flow, FlowDistribution, log_likelihood
from .grids import SolveStats
from .history import History, Record
from .kl import ForwardKL, ReverseKL
from .loop import TrainingError
from .matching import FlowMatching
from .metrics import MMD, SlicedWasserstein
from .normalization import ActNorm, BatchNorm
from .preprocessing import Whitening, behind, choose, inside, standardise, whiten
from .schedules import Constant, Cosine, Plateau, Schedule
from .solvers import Adaptive, FixedGrid, Lagged, SolverError
from .squashing import Exp, Log, Logit, Sigmoid, Softplus, Softsign, Tanh
from .storage import LoadError, load, register
from .table import TableFlow
from .torch_bases import TorchBase
from .training import fit
from .transform import as_transform

__all__ = [
    "FFJORD",
    "MLP",
    "MMD",
    "ActNorm",
    "Adaptive",
    "Affine",
    "AlphaDivergence",
    "Base",
    "BatchNorm",
    "Bijector",
    "Bounded",
    "Chain",
    "ChiSquare",
    "Constant",
    "Cosine",
    "DiagonalScale",
    "ElementwiseAffine",
    "Exp",
    "FixedGrid",
    "Flow",
    "FlowDistribution",
    "FlowMatching",
    "ForwardKL",
    "History",
    "Inverse",
    "JensenShannon",
    "Lagged",
    "LeakyReLU",
    "LoadError",
    "Log",
    "Logistic",
    "Logit",
    "MixtureOfGaussians",
    "Normal",
    "ODEBijector",
    "Plateau",
    "ProcessError",
    "Record",
    "ReverseKL",
    "Schedule",
    "Sigmoid",
    "SinhArcsinh",
    "SlicedWasserstein",
    "Softplus",
    "Softsign",
    "SolveStats",
    "SolverError",
    "StudentT",
    "TableFlow",
    "Tanh",
    "TorchBase",
    "TrainingError",
    "Whitening",
    "__version__",
    "as_transform",
    "behind",
    "choose",
    "fit",
    "inside",
    "load",
    "log_likelihood",
    "register",
    "standardise",
    "value_and_divergence",
    "whiten",
]
