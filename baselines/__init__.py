"""Discrete normalizing flows: MAF, IAF, RealNVP, NICE, spline flows and their parts.

``forward`` is noise to data, ``inverse`` is data to noise, as in ``cflows``.
"""

from .autoregressive import IAF, MAF, AutoregressiveAffine
from .coupling import NICE, NSF, Coupling, RealNVP
from .made import MADE
from .splines import RationalQuadratic
from .transformers import Additive, AffineScale

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "NSF",
    "Additive",
    "AffineScale",
    "AutoregressiveAffine",
    "Coupling",
    "RationalQuadratic",
    "RealNVP",
]
