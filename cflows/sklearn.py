"""scikit-learn's interface under its earlier name; it stands in ``baselines.sklearn``."""

from baselines.sklearn import DensityEstimator as DensityEstimator
