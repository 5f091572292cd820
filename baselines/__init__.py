"""Discrete normalizing flows and their parts.

MAF, IAF, RealNVP, NICE, neural spline flows, planar, radial, Sylvester and residual flows.
``forward`` is noise to data, ``inverse`` is data to noise, as in ``cflows``.
"""

from cflows.core.registry import moved, short_tags

short_tags("baselines")

from baselines.flows.autoregressive import IAF, MAF, Autoregressive, AutoregressiveAffine
from baselines.flows.coupling import NICE, Coupling, RealNVP
from baselines.flows.image import Glow, ImageCoupling, ImageRealNVP
from baselines.flows.linear import Householder, Invertible1x1, LULinear
from baselines.flows.made_mog import MADEMoG
from baselines.flows.nsf import NSF
from baselines.flows.planar import Planar, PlanarFlow, Radial, RadialFlow
from baselines.flows.residual import Residual, ResidualFlow
from baselines.flows.sylvester import Sylvester, SylvesterFlow
from baselines.inversion.roots import InversionError, InversionStatus
from baselines.networks.made import MADE
from baselines.transforms.rational_quadratic import AffineSpline, RationalQuadratic
from baselines.transforms.univariate import Additive, AffineScale, Transformer, UnivariateTransform
from cflows.bijectors.multiscale import MultiScale, Permutation, Squeeze

moved("baselines", MultiScale, Permutation, Squeeze)

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
    "Glow",
    "Householder",
    "ImageCoupling",
    "ImageRealNVP",
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
    "UnivariateTransform",
]
