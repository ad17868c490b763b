"""Pictures of fitted models, by scikit-learn's Display convention. They need matplotlib.

``XDisplay.from_estimator(estimator, X, ax=None)`` computes and draws; the object keeps what it drew
and draws it again by ``plot``. With ``ax`` given, nothing else of matplotlib is touched. To install
matplotlib: ``pip install "skvae[plot]"``.
"""

from ._components import ComponentDisplay
from ._curves import TrainingCurveDisplay
from ._latent import LatentDisplay
from ._manifold import ManifoldDisplay
from ._outliers import OutlierDisplay
from ._reconstruction import ReconstructionDisplay

__all__ = [
    "ComponentDisplay",
    "LatentDisplay",
    "ManifoldDisplay",
    "OutlierDisplay",
    "ReconstructionDisplay",
    "TrainingCurveDisplay",
]
