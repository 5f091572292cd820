"""Discrete normalizing flows and their parts.

MAF, IAF, RealNVP, NICE, neural spline flows, planar, radial, Sylvester and residual flows.
``forward`` is noise to data, ``inverse`` is data to noise, as in ``cflows``.
"""

from .autoregressive import IAF, MAF, Autoregressive, AutoregressiveAffine
from .coupling import NICE, Coupling, RealNVP
from .linear import Householder, Invertible1x1, LULinear, Permutation
from .made import MADE
from .mixtures import MADEMoG
from .multiscale import MultiScale, Squeeze
from .nsf import NSF
from .planar import Planar, PlanarFlow, Radial, RadialFlow
from .residual import Residual, ResidualFlow
from .roots import InversionError, InversionStatus
from .splines import AffineSpline, RationalQuadratic
from .sylvester import Sylvester, SylvesterFlow
from .transformers import Additive, AffineScale, Transformer

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "NSF",
    "Additive",
    "AffineScale",
    "AffineSpline",
    "Autoregressive",
    "AutoregressiveAffine",
    "Coupling",
    "Householder",
    "InversionError",
    "InversionStatus",
    "Invertible1x1",
    "LULinear",
    "MADEMoG",
    "MultiScale",
    "Permutation",
    "Planar",
    "PlanarFlow",
    "Radial",
    "RadialFlow",
    "RationalQuadratic",
    "RealNVP",
    "Residual",
    "ResidualFlow",
    "Squeeze",
    "Sylvester",
    "SylvesterFlow",
    "Transformer",
]
