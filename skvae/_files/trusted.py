"""The types of skvae's own that skops finds in its estimators."""

_BY_MODULE = {
    "_calibration": ["Calibration"],
    "_detection": ["RowScore"],
    "_fitted": ["Fitted"],
    "_history": ["History"],
    "_imputer": ["VAEImputer"],
    "_outlier": ["VAEOutlierDetector"],
    "_table.columns": ["Columns"],
    "_table.schema": ["Schema"],
    "_table.shape": ["Grid", "Piece", "Shape"],
    "_table.support": ["Kinds", "Limits", "Support"],
    "_transformer": ["VAETransformer"],
    "likelihoods._counts": ["NegativeBinomial", "Poisson"],
    "likelihoods._levels": ["Bernoulli", "Categorical", "Ordinal"],
    "likelihoods._multinomial": ["Multinomial"],
    "likelihoods._normal_scores": ["NormalScores"],
    "likelihoods._real": ["Gaussian", "LogNormal", "StudentT"],
    "priors": ["Mixture", "StandardNormal"],
}
SKOPS_TRUSTED_TYPES = [
    f"skvae.{module}.{name}" for module, names in _BY_MODULE.items() for name in names
]
"""Full names of the types that :func:`skops.io.load` has to trust to read skvae's estimators."""
