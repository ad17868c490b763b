"""Graphs of fitted estimators, from what they are fed to what they give back."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from .._calibration import ROUNDING
from .._detection import RowScore
from .._fitted import Fitted
from .._outlier import VAEOutlierDetector, scoring_of
from .._parameters import VERSION
from .._resources import own_gradients
from .._table.columns import Columns
from .._transformer import VAETransformer
from .graph import ML_OPSET, OPSET, Graph
from .inputs import Encoded, Feed, feeds_of, labels_of, read
from .kernels import log_density_of
from .loops import described
from .model import codes_of, mean_of, module_of, score_of
from .outputs import Output, decoded, numbers, table_of
from .shapes import Shapes
from .traced import ELEMENTS, UntranslatedError, given

IR_VERSION = 8  # the first that has the opset
SCORES = ("elbo", "reconstruction", "kl")

Outputs = Sequence[Output]


def model_of(estimator: Any, method: str, precision: str) -> ModelProto:
    """Return a model of a fitted estimator's method on its own."""
    vae = estimator if isinstance(estimator, VAETransformer) else estimator.vae_
    labels, dtype = labels_of(vae.model_.schema), getattr(torch, precision)
    graph = Graph(_prefix(labels))
    if method == "inverse_transform":
        feeds = [Feed(_unlike(labels, "Z"), dtype, vae.model_.n_components)]
    else:
        feeds = feeds_of(vae.model_, dtype)
    outputs = outputs_of(graph, feeds, estimator, method, dtype)
    properties = {"estimator": type(estimator).__name__, "method": method}
    return _assembled(graph, feeds, outputs, properties)


def outputs_of(
    graph: Graph, feeds: Sequence[Feed], estimator: Any, method: str, dtype: torch.dtype
) -> Outputs:
    """Write the graph of a method; raise a ValueError if a formula cannot be written."""
    write = _of_transformer if isinstance(estimator, VAETransformer) else _of_detector
    try:
        with own_gradients():
            return write(graph, feeds, estimator, method, dtype)
    except UntranslatedError as error:
        raise ValueError(
            f"{method!r} of this {type(estimator).__name__} cannot be an ONNX model: one of its "
            f"likelihoods, or its prior, is written in a way that a graph is not. {error}"
        ) from error


# -- the transformer ------------------------------------------------------------------------------


def _of_transformer(
    graph: Graph, feeds: Sequence[Feed], vae: VAETransformer, method: str, dtype: torch.dtype
) -> Outputs:
    if method == "inverse_transform":
        return _inverse(graph, feeds[0], vae, dtype)
    model, name = vae.model_, _unlike([feed.name for feed in feeds], _name_of(method))
    rows, module = read(graph, feeds, model, vae.handle_unknown), module_of(model, dtype)
    if method == "transform":
        z = codes_of(module, rows, torch.tensor(model.code_scale(vae.whiten)))
        return [numbers(name, torch.where(rows.cells.wrong[:, None], math.nan, z), dtype)]
    score = score_of(module, rows, method, model.samples_for(method, vae.n_importance_samples))
    score = in_units(score, rows, model) if method != "kl" else score
    return [numbers(name, _column(score, rows), dtype)]


def in_units(score: Any, rows: Encoded, model: Fitted) -> Any:  # (N,)
    """Turn a log-density of x into one of the user's units, and charge for what is unseen."""
    return score + _log_jacobian(model.columns, rows) + rows.cells.cost


def _log_jacobian(columns: Columns, rows: Encoded) -> Any:
    observed = rows.observed.double()
    shaped, log_jacobian = list(columns.shapes), torch.tensor(columns.log_jacobian.copy())
    log_jacobian[shaped] = 0.0
    total = (observed * log_jacobian).sum(1)
    if not shaped:
        return total
    own = Shapes([*columns.shapes.values()]).log_jacobian(rows.x[:, shaped])
    return total + (observed[:, shaped] * own).sum(1)


def _column(score: Any, rows: Encoded) -> Any:  # (N, 1)
    return torch.where(rows.cells.wrong, math.nan, score)[:, None]


def _inverse(graph: Graph, feed: Feed, vae: VAETransformer, dtype: torch.dtype) -> Outputs:
    """Write the graph of ``inverse_transform``."""
    model, module = vae.model_, module_of(vae.model_, dtype)
    graph.give(feed.name)
    shape = (graph.new_size(feed.name, 0), feed.n_columns)
    codes = given(graph, feed.name, dtype, shape).double()
    scale = torch.tensor(model.code_scale(vae.whiten))
    z = codes * torch.where(scale > 0.0, 1.0 / scale, 0.0)
    cells = decoded(model.columns, mean_of(module, z))
    return table_of(model, labels_of(model.schema), cells, dtype)


# -- the detector ---------------------------------------------------------------------------------


def _of_detector(
    graph: Graph,
    feeds: Sequence[Feed],
    detector: VAEOutlierDetector,
    method: str,
    dtype: torch.dtype,
) -> Outputs:
    rows = read(graph, feeds, detector.vae_.model_, detector.vae_.handle_unknown)
    score = _detector_score(detector, scoring_of(detector), rows, dtype)
    names = [feed.name for feed in feeds]
    if method == "score_samples":
        return [numbers(_unlike(names, "score_samples"), _column(score, rows), dtype)]
    tied = score == detector.offset_  # both may be minus infinity
    decision = torch.where(tied, 0.0, score) - torch.where(tied, 0.0, detector.offset_)
    outputs = [numbers(_unlike(names, "scores"), _column(decision, rows), dtype)]
    if method == "predict":
        # A row of fit may be the threshold itself: this close to it, it is no outlier.
        threshold = detector.offset_ - ROUNDING * (1.0 + abs(detector.offset_))
        odd = (score < threshold) | rows.cells.wrong
        label: Any = torch.where(odd, -1, 1).long()[:, None]
        outputs = [Output(label.name, described(label, _unlike(names, "label"))), *outputs]
    return outputs


def _detector_score(
    detector: VAEOutlierDetector, how: RowScore, rows: Encoded, dtype: torch.dtype
) -> Any:  # (N,)
    """Return ``RowScore.of``, of new rows."""
    vae, model = detector.vae_, detector.vae_.model_
    module = module_of(model, dtype)
    if how.kernels is not None:
        score, own = log_density_of(module, rows, how)
        score = in_units(_with_expected(score, rows, how), rows, model)
        return score if how.known_at_kernels is None else torch.where(own > -math.inf, own, score)
    n_samples = model.samples_for(how.method, vae.n_importance_samples)
    score = score_of(module, rows, how.method, n_samples)
    if how.method == "kl":
        return score
    return in_units(_with_expected(score, rows, how), rows, model)


def _with_expected(score: Any, rows: Encoded, how: RowScore) -> Any:  # (N,)
    """Add what is expected of missing cells; nothing is of values that fit has not seen."""
    if how.expected is None:
        return score
    missing = rows.cells.table.isnan() & ~rows.cells.unseen
    return score + (missing * torch.tensor(how.expected)).sum(1)


# -- the model ------------------------------------------------------------------------------------


def _prefix(labels: Sequence[str]) -> str:
    """Return what no column's name begins with."""
    prefix = "skvae_"
    while any(label.startswith(prefix) for label in labels):
        prefix += "_"
    return prefix


def _unlike(names: Sequence[str], wanted: str) -> str:
    """Return a name that is not taken."""
    return _unlike(names, wanted + "_") if wanted in names else wanted


def _name_of(method: str) -> str:
    return "Z" if method == "transform" else method


def _assembled(
    graph: Graph, feeds: Sequence[Feed], outputs: Outputs, properties: dict[str, str]
) -> ModelProto:
    inputs = [_input_of(feed) for feed in feeds]
    for one in outputs:
        graph.finish(one.value, one.info.name)
    nodes, constants = graph.needed([one.info.name for one in outputs])
    infos = [one.info for one in outputs]
    made = helper.make_graph(nodes, "skvae", inputs, infos, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(
        made,
        opset_imports=opsets,
        ir_version=IR_VERSION,
        producer_name="skvae",
        producer_version=VERSION,
    )
    helper.set_model_props(model, {"skvae_version": VERSION, **properties})
    return model


def _input_of(feed: Feed) -> ValueInfoProto:
    element = TensorProto.STRING if isinstance(feed.element, str) else ELEMENTS[feed.element]
    return helper.make_tensor_value_info(feed.name, element, [None, feed.n_columns])
