"""p(x_d | z): the distribution of a column given the decoder's raw output.

A likelihood says what values it takes, how the decoder's raw output parameterises it, and how a
linear-Gaussian fit becomes its start. To add one: one final class here, one row in
``LIKELIHOODS``, one row in the table of ``tests/test_likelihoods.py``.

A *feature* is what the encoder and the linear fit see of a column: the value itself, its logarithm,
or one indicator for each level of a category. There are as many features as raw parameters.
"""

from .._table.support import Support as Support
from ._counts import NegativeBinomial as NegativeBinomial
from ._counts import Poisson as Poisson
from ._levels import Bernoulli as Bernoulli
from ._levels import Categorical as Categorical
from ._levels import Ordinal as Ordinal
from ._likelihood import Likelihood as Likelihood
from ._likelihood import LinearFit as LinearFit
from ._likelihood import LinearStart as LinearStart
from ._names import LIKELIHOODS as LIKELIHOODS
from ._real import Gaussian as Gaussian
from ._real import LogNormal as LogNormal
from ._real import StudentT as StudentT
