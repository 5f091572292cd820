"""Continuous normalizing flows, and the vocabulary they share with the discrete ones.

``forward`` is noise to data, ``inverse`` is data to noise, everywhere.
"""

import sys
from importlib import import_module
from types import ModuleType

from cflows.adapters.adapt import adapt
from cflows.adapters.velocity import VelocityField, field_from
from cflows.bases.logistic import Logistic
from cflows.bases.mixture import MixtureOfGaussians
from cflows.bases.student_t import StudentT
from cflows.bases.torch import TorchBase
from cflows.bijectors.bounded import Bounded
from cflows.bijectors.elementwise import (
    Affine,
    DiagonalScale,
    ElementwiseAffine,
    LeakyReLU,
    SinhArcsinh,
)
from cflows.bijectors.inverse import Inverse
from cflows.bijectors.marginals import Margins, Radial
from cflows.bijectors.multiscale import MultiScale, Permutation, Squeeze
from cflows.bijectors.normalization import ActNorm, BatchNorm
from cflows.bijectors.squashing import Exp, Log, Logit, Sigmoid, Softplus, Softsign, Tanh
from cflows.bijectors.whitening import Whitening
from cflows.continuous.bespoke import Bespoke
from cflows.continuous.conv_fields import ConvField, UNetField
from cflows.continuous.divergence import value_and_divergence
from cflows.continuous.ffjord import FFJORD
from cflows.continuous.fields import MLP
from cflows.continuous.image import ImageFFJORD
from cflows.continuous.ode_bijector import ODEBijector
from cflows.continuous.residual_field import ResidualField
from cflows.continuous.solvers import Adaptive, FixedGrid, Lagged
from cflows.continuous.stages import SolverError, SolveStats
from cflows.continuous.tuning import Tuning, tune_solver
from cflows.core.base import Base, Normal
from cflows.core.bijector import Bijector, Chain
from cflows.core.collectives import ProcessError
from cflows.core.context import ContextNetwork
from cflows.core.flow import Flow, FlowDistribution, log_likelihood
from cflows.core.registry import LoadError, register
from cflows.core.saving import load
from cflows.core.table_flow import TableFlow
from cflows.core.transform import as_transform
from cflows.objectives.annealing import Annealed, annealed
from cflows.objectives.f_divergences import AlphaDivergence, ChiSquare, JensenShannon
from cflows.objectives.flow_matching import FlowMatching
from cflows.objectives.importance import Importance, importance
from cflows.objectives.ipm import MMD, SlicedWasserstein
from cflows.objectives.kl import ForwardKL, ReverseKL
from cflows.training.fit import fit
from cflows.training.gaussianisation import gaussianise
from cflows.training.history import History, Record
from cflows.training.pipeline import behind, choose
from cflows.training.preprocessing import inside, standardise, whiten
from cflows.training.schedules import Constant, Cosine, Plateau, Schedule
from cflows.training.trainer import TrainingError

__version__ = "0.1.0"

__all__ = [
    "FFJORD",
    "MLP",
    "MMD",
    "ActNorm",
    "Adaptive",
    "Affine",
    "AlphaDivergence",
    "Annealed",
    "Base",
    "BatchNorm",
    "Bespoke",
    "Bijector",
    "Bounded",
    "Chain",
    "ChiSquare",
    "Constant",
    "ContextNetwork",
    "ConvField",
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
    "ImageFFJORD",
    "Importance",
    "Inverse",
    "JensenShannon",
    "Lagged",
    "LeakyReLU",
    "LoadError",
    "Log",
    "Logistic",
    "Logit",
    "Margins",
    "MixtureOfGaussians",
    "MultiScale",
    "Normal",
    "ODEBijector",
    "Permutation",
    "Plateau",
    "ProcessError",
    "Radial",
    "Record",
    "ResidualField",
    "ReverseKL",
    "Schedule",
    "Sigmoid",
    "SinhArcsinh",
    "SlicedWasserstein",
    "Softplus",
    "Softsign",
    "SolveStats",
    "SolverError",
    "Squeeze",
    "StudentT",
    "TableFlow",
    "Tanh",
    "TorchBase",
    "TrainingError",
    "Tuning",
    "UNetField",
    "VelocityField",
    "Whitening",
    "__version__",
    "adapt",
    "annealed",
    "as_transform",
    "behind",
    "choose",
    "field_from",
    "fit",
    "gaussianise",
    "importance",
    "inside",
    "load",
    "log_likelihood",
    "register",
    "standardise",
    "tune_solver",
    "value_and_divergence",
    "whiten",
]

# Modules that are part of the interface under these names, wherever they stand.
for _name in ("divergence", "fields", "penalties", "solvers"):
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = import_module(
        f"cflows.continuous.{_name}"
    )


class _Forward(ModuleType):
    """An earlier name of a module, which is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module("baselines.sklearn"), name)


sklearn = sys.modules[f"{__name__}.sklearn"] = _Forward(f"{__name__}.sklearn")
