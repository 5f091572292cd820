"""Discrete normalizing flows: MAF, IAF, RealNVP, NICE, residual flows and their parts.

``forward`` is noise to data, ``inverse`` is data to noise, as in ``cflows``.
"""

from .autoregressive import IAF, MAF, AutoregressiveAffine
from .coupling import NICE, Coupling, RealNVP
from .linear import Householder, Invertible1x1, LULinear, Permutation
from .made import MADE
from .multiscale import MultiScale, Squeeze
from .residual import FixedPointError, Residual, ResidualFlow

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "AutoregressiveAffine",
    "Coupling",
    "FixedPointError",
    "Householder",
    "Invertible1x1",
    "LULinear",
    "MultiScale",
    "Permutation",
    "RealNVP",
    "Residual",
    "ResidualFlow",
    "Squeeze",
]
