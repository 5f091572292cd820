"""Continuous normalizing flows, and the vocabulary they share with the discrete ones.

``forward`` is noise to data, ``inverse`` is data to noise, everywhere.
"""

from cflows.bases.torch import TorchBase
from cflows.bijectors.bounded import Bounded
from cflows.bijectors.elementwise import (
    Affine,
    DiagonalScale,
    ElementwiseAffine,
    LeakyReLU,
    SinhArcsinh,
)
from cflows.bijectors.normalization import ActNorm, BatchNorm
from cflows.bijectors.squashing import Exp, Log, Logit, Sigmoid, Softplus, Softsign, Tanh
from cflows.continuous.divergence import value_and_divergence
from cflows.continuous.ffjord import FFJORD
from cflows.continuous.fields import MLP
from cflows.continuous.ode_bijector import ODEBijector
from cflows.continuous.runge_kutta import SolveStats
from cflows.continuous.solvers import Adaptive, FixedGrid, Lagged, SolverError
from cflows.core.base import Base, Logistic, MixtureOfGaussians, Normal, StudentT
from cflows.core.bijector import Bijector, Chain, Inverse
from cflows.core.flow import Flow, FlowDistribution, log_likelihood
from cflows.core.saving import LoadError, load, register
from cflows.core.table_flow import TableFlow
from cflows.core.transform import as_transform
from cflows.objectives.f_divergences import AlphaDivergence, ChiSquare, JensenShannon
from cflows.objectives.flow_matching import FlowMatching
from cflows.objectives.ipm import MMD, SlicedWasserstein
from cflows.objectives.kl import ForwardKL, ReverseKL
from cflows.training.distributed import ProcessError
from cflows.training.fit import fit
from cflows.training.history import History, Record
from cflows.training.preprocessing import (
    Whitening,
    behind,
    choose,
    inside,
    standardise,
    whiten,
)
from cflows.training.schedules import Constant, Cosine, Plateau, Schedule
from cflows.training.trainer import TrainingError

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
