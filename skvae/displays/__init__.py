"""Pictures of fitted models, by scikit-learn's Display convention. They need matplotlib.

``XDisplay.from_estimator(estimator, X, ax=None)`` computes and draws; the object keeps what it drew
and draws it again by ``plot``. With ``ax`` given, nothing else of matplotlib is touched: axes that
are given are divided into as many panels as there is room for. To install matplotlib:
``pip install "skvae[plot]"``.

A fitted Pipeline may stand for its last step that is of skvae. X are rows as the pipeline takes
them, and the picture is of what the steps before make of them: what it calls original units are
those that this step was given. It names columns as that step knows them, by numbers after a scaler;
``pipeline.set_output(transform="pandas")`` before ``fit`` keeps their names.
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
