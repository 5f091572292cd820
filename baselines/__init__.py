"""Discrete normalizing flows: MAF, IAF, RealNVP, NICE and their parts.

``forward`` is noise to data, ``inverse`` is data to noise, as in ``cflows``.
"""

from .autoregressive import IAF, MAF, Autoregressive, AutoregressiveAffine
from .coupling import NICE, Coupling, RealNVP
from .made import MADE
from .mixtures import MADEMoG

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "NICE",
    "Autoregressive",
    "AutoregressiveAffine",
    "Coupling",
    "MADEMoG",
    "RealNVP",
]
