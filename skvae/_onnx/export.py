"""``to_onnx``: a fitted estimator, or a pipeline that has one, as an ONNX model."""

from typing import TYPE_CHECKING, Any

from sklearn.pipeline import Pipeline

from .._inputs import fitted_now
from .methods import check_exportable, check_method, need, precision_of

if TYPE_CHECKING:
    from onnx import ModelProto


def to_onnx(
    estimator: Any, X: Any = None, *, method: str | None = None, dtype: Any = "float32"
) -> "ModelProto":
    """Convert a fitted estimator to an ONNX model, which runs without skvae and without torch.

    The model has the encoder, the decoder, the likelihoods, the noise bank of the scores and the
    kernels of a detector, and it reads rows as ``transform`` does: levels that fit has not seen and
    missing values, too. In float32 its results are within 1e-5 of the estimator's, relative to
    their size and their standard deviation; in float64 nearly all digits agree.

    Parameters
    ----------
    estimator : VAETransformer, VAEOutlierDetector or Pipeline
        What was fitted. Other steps of a pipeline are converted by skl2onnx, whose converters
        :func:`register_onnx_converters` adds to.
    X : array-like or frame, default=None
        Some rows, of which only the names and dtypes of the columns are read: only for a pipeline,
        whose first step may not know what it was fitted to.
    method : str, default=None
        What the model computes. Of a transformer "transform" (the default), "inverse_transform",
        or a score: "elbo", "reconstruction" or "kl", as ``score_samples`` names them. Of a detector
        "predict" (the default: the output "label", and "scores" from "decision_function"),
        "decision_function" or "score_samples". Of a pipeline, that of its last step.
    dtype : {"float32", "float64"} or a dtype of NumPy, default="float32"
        Precision of what goes in and comes out, and of the activations of hidden layers. All else
        is computed in float64.

    Returns
    -------
    model : onnx.ModelProto
        Its bytes, ``model.SerializeToString()``, depend on the fitted estimator alone. The version
        of skvae, the estimator and the method are in its ``metadata_props``.

    Raises
    ------
    ImportError
        If onnx is not installed, or skl2onnx, for a pipeline.
    ValueError
        If there is no such method, or it cannot be a graph: one that searches the modes of a
        posterior, or ``predict`` with ``fdr``, which depends on the other rows.
    TypeError
        If the estimator is none of these, such as a VAEImputer, whose values are found by a search.

    Notes
    -----
    The model's inputs are as skl2onnx makes them: for an array of numbers one matrix "X", for a
    frame one column of shape (n, 1) for each of its columns, by name. Text and categories of text
    are ``tensor(string)``, all other columns numbers. A missing number is nan, and so is a text
    that stands among numbers. A missing text is the empty string; so are "nan", "None", "<NA>",
    "NaN" and "NaT", which onnxruntime makes of missing values in arrays of objects, unless fit had
    a level of that name. scikit-learn's encoders in a pipeline that were fitted to missing values
    read them the same way, and a level that is an error to them ends the run with one. Columns of a
    pipeline that pandas' nullable dtypes or polars hold are floats, so that they can miss. Truth
    values are 0 and 1, and dates, times and durations are days as float64: since 1970, in UTC, or
    since midnight. Codes are "Z", and go into the model of ``inverse_transform`` by that name.
    Scores and labels have the shape (n, 1).

    An estimator raises an error where a cell is infinite, has no density, or is an unknown level
    and ``handle_unknown="error"``. The model gives nan in such a row, and the label -1.

    What no model can have: the values of a ``VAEImputer``, the score "log_likelihood" and a
    detector's p-values and labels by ``fdr``, which depend on other rows.

    In small tables, a detector scores rows of fit by a model that was fitted without them. So does
    the ONNX model, of rows that have a kernel: not of those that ``support_fraction`` leaves out,
    and not with another ``score_method`` than "aggregate".

    The model uses opset 18 of ai.onnx and 3 of ai.onnx.ml.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> import skvae
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = skvae.VAETransformer(2, max_iter=0, random_state=0).fit(X)
    >>> model = skvae.to_onnx(vae)
    >>> [value.name for value in [*model.graph.input, *model.graph.output]]
    ['X', 'Z']
    """
    precision = precision_of(dtype)
    if isinstance(estimator, Pipeline):
        return _of_pipeline(estimator, X, method, precision)
    check_exportable(estimator)
    now = fitted_now(estimator)
    method = check_method(now, method)
    need("onnx")
    from .build import model_of

    return model_of(now, method, precision)


def register_onnx_converters() -> None:
    """Let skl2onnx convert pipelines and other estimators that have one of skvae's inside.

    The converters are for ``VAETransformer`` (``transform``) and ``VAEOutlierDetector`` (outputs
    "label" and "scores", as of scikit-learn's detectors). The option ``method`` of skl2onnx chooses
    another method of the last step: ``options={id(step): {"method": "elbo"}}``.

    Raises
    ------
    ImportError
        If skl2onnx is not installed.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skvae import VAETransformer, register_onnx_converters
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, max_iter=0, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), vae).fit(X)
    >>> register_onnx_converters()
    >>> from skl2onnx import to_onnx
    >>> model = to_onnx(pipeline, X[:1].astype("float32"))
    >>> [value.name for value in [*model.graph.input, *model.graph.output]]
    ['X', 'variable']
    """
    need("onnx", "skl2onnx")
    from .converters import register

    register()


def _of_pipeline(pipeline: Pipeline, X: Any, method: str | None, precision: str) -> "ModelProto":
    need("onnx", "skl2onnx")
    from .converters import model_of_pipeline

    return model_of_pipeline(fitted_now(pipeline), X, method, precision)
