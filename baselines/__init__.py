"""Discrete normalizing flows: MAF, IAF, RealNVP, NICE, planar, radial, Sylvester, and their parts.

``forward`` is noise to data, ``inverse`` is data to noise, as in ``cflows``.
"""

from .autoregressive import IAF, MAF, Autoregressive, AutoregressiveAffine
from .coupling import NICE, Coupling, RealNVP
from .made import MADE
from .mixtures import MADEMoG
from .planar import Planar, PlanarFlow, Radial, RadialFlow
from .roots import InversionError, InversionStatus
from .sylvester import Sylvester, SylvesterFlow

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "Autoregressive",
    "AutoregressiveAffine",
    "Coupling",
    "InversionError",
    "InversionStatus",
    "MADEMoG",
    "Planar",
    "PlanarFlow",
    "Radial",
    "RadialFlow",
    "RealNVP",
    "Sylvester",
    "SylvesterFlow",
]
