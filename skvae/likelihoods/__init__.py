"""p(x_d | z): the distribution of a column given the decoder's raw output.

A likelihood says what values it takes, how the decoder's raw output parameterises it, and how a
linear-Gaussian fit becomes its start. One of your own is a subclass of ``Likelihood``, given to an
estimator as an instance.

A *feature* is what the encoder and the linear fit see of a column: the value itself, its logarithm,
or one indicator for each level of a category. There are as many features as raw parameters.
"""

from .._table.support import Support
from ._counts import NegativeBinomial, Poisson
from ._levels import Bernoulli, Categorical, Ordinal
from ._likelihood import Likelihood, LinearFit, LinearStart
from ._multinomial import Multinomial
from ._names import LIKELIHOODS
from ._normal_scores import NormalScores
from ._real import Gaussian, LogNormal, StudentT

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "LinearFit",
    "LinearStart",
    "LogNormal",
    "Multinomial",
    "NegativeBinomial",
    "NormalScores",
    "Ordinal",
    "Poisson",
    "StudentT",
    "Support",
]
