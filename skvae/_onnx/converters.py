"""Converters for skl2onnx: skvae's estimators inside of pipelines."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper
from skl2onnx import convert_sklearn, get_model_alias, update_registered_converter
from skl2onnx.common import data_types
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from .._imputer import VAEImputer
from .._inputs import fitted_now
from .._outlier import VAEOutlierDetector
from .._parameters import VERSION
from .._table.frames import columns_of, is_numbers, library_of, raw_column
from .._transformer import VAETransformer
from .build import outputs_of
from .encoders import LevelTable, with_tables
from .graph import ML_OPSET, OPSET, Graph
from .inputs import TEXT, Fed, Feed, feeds_of
from .methods import METHODS, check_exportable, check_method
from .outputs import Output, numbers

ELEMENTS: dict[type, Any] = {
    data_types.FloatTensorType: torch.float32,
    data_types.DoubleTensorType: torch.float64,
    data_types.Int64TensorType: torch.int64,
    data_types.Int32TensorType: torch.int32,
    data_types.BooleanTensorType: torch.bool,
    data_types.StringTensorType: TEXT,
}
FLOATS = {"float32": data_types.FloatTensorType, "float64": data_types.DoubleTensorType}
NOTHING = "passthrough"
LABEL, SCORES = "label", "scores"
LABEL_ENCODER = 2  # the version of this operator, the only one of ai.onnx.ml


def register() -> None:
    """Tell skl2onnx of the estimators."""
    of_rows = [method for method in METHODS[VAETransformer] if method != "inverse_transform"]
    for kind, methods, parse in (
        (VAETransformer, of_rows, _parsed),
        (VAEOutlierDetector, list(METHODS[VAEOutlierDetector]), _parsed),
        (VAEImputer, None, _refuse),
    ):
        update_registered_converter(
            kind,
            f"Skvae{kind.__name__}",
            _set_types,
            _convert,
            parser=parse,
            options=None if methods is None else {"method": methods},
        )

    update_registered_converter(LevelTable, "SkvaeLevelTable", _set_table_type, _convert_table)


def _refuse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    check_exportable(model)


def _method(holder: Any, estimator: Any) -> str:
    options = holder.get_options(estimator, {"method": METHODS[type(estimator)][0]})
    return check_method(estimator, options["method"])


def _parsed(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """Add an estimator and its outputs to what is to be converted."""
    operator = scope.declare_local_operator(get_model_alias(type(model)), model)
    operator.inputs = inputs
    names = {
        "transform": ["variable"],
        "predict": [LABEL, SCORES],
        "decision_function": [SCORES],
    }
    method = _method(scope, model)
    for name in names.get(method, [method]):
        kind = data_types.Int64TensorType if name == LABEL else _float_type(operator)
        operator.outputs.append(scope.declare_local_variable(name, kind()))
    return operator.outputs


def _float_type(operator: Any) -> Any:
    kinds = {type(variable.type) for variable in operator.inputs}
    return FLOATS["float64" if data_types.DoubleTensorType in kinds else "float32"]


def _set_types(operator: Any) -> None:
    """Set dtypes and shapes of an estimator's outputs."""
    codes = _method(operator.scope_inst, operator.raw_operator) == "transform"
    width = operator.raw_operator.n_components_ if codes else 1
    for variable in operator.outputs:
        is_label = isinstance(variable.type, data_types.Int64TensorType)
        kind = data_types.Int64TensorType if is_label else _float_type(operator)
        variable.type = kind([None, width])


def _set_table_type(operator: Any) -> None:
    operator.outputs[0].type = _float_type(operator)([None, operator.raw_operator.width])


def _convert_table(scope: Any, operator: Any, container: Any) -> None:
    """Write the nodes of what stands for an encoder."""
    table = operator.raw_operator
    graph = _graph(scope)
    fed = Fed(graph, _feeds(operator.inputs, len(table.columns)), table.columns)
    made = numbers("levels", table.encoded(fed), ELEMENTS[_float_type(operator)])
    _add_all(graph, [made], (scope, operator, container))


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Write an estimator's nodes."""
    if (opset := container.target_opset_any_domain("")) < OPSET:
        raise ValueError(f"skvae's converters need target_opset={OPSET} or more. Got {opset}.")
    estimator, graph = fitted_now(operator.raw_operator), _graph(scope)
    feeds = _feeds(operator.inputs, estimator.n_features_in_)
    method = _method(container, operator.raw_operator)
    outputs = outputs_of(graph, feeds, estimator, method, ELEMENTS[_float_type(operator)])
    _add_all(graph, outputs, (scope, operator, container))


def _graph(scope: Any) -> Graph:
    return Graph(scope.get_unique_variable_name("skvae") + "_", ordered=True)


def _add_all(graph: Graph, outputs: Sequence[Output], place: tuple[Any, Any, Any]) -> None:
    """Add a graph's nodes where skl2onnx wants them."""
    scope, operator, container = place
    nodes, constants = graph.needed([output.value for output in outputs])
    container.initializers.extend(constants)
    for node in nodes:
        _add(container, node)
    for variable, output in zip(operator.outputs, outputs, strict=True):
        name = scope.get_unique_operator_name("SkvaeOutput")
        container.add_node("Identity", [output.value], [variable.full_name], name=name)


def _feeds(variables: Sequence[Any], n_columns: int) -> list[Feed]:
    feeds = []
    for variable in variables:
        element = ELEMENTS.get(type(variable.type))
        if element is None:
            raise TypeError(
                f"The input {variable.raw_name!r} of a skvae estimator has the type "
                f"{variable.type}, but it reads numbers, truth values and texts."
            )
        width = variable.type.shape[1] if len(variable.type.shape) == 2 else None
        alone = n_columns if len(variables) == 1 else 1
        feeds.append(Feed(variable.full_name, element, width or alone))
    return feeds


def _add(container: Any, node: NodeProto) -> None:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    container.add_node(
        node.op_type,
        list(node.input),
        list(node.output),
        op_domain=node.domain,
        op_version=LABEL_ENCODER if node.domain else None,  # None: the last one of the opset
        name=node.name,
        **attributes,
    )


# -- pipelines ------------------------------------------------------------------------------------


def model_of_pipeline(pipeline: Pipeline, X: Any, method: str | None, precision: str) -> ModelProto:
    """Return a pipeline as one model."""
    register()
    # skl2onnx does not know steps that do nothing.
    steps = [(n, step) for n, step in pipeline.steps if step not in (None, NOTHING)]
    pipeline = with_tables(Pipeline(steps))
    last = pipeline.steps[-1][1]
    options: dict[int, dict[str, Any]] = {}
    if type(last) in METHODS:
        options[id(last)] = {"method": check_method(last, method)}
    elif method is not None:
        raise ValueError(
            f"method={method!r} is for pipelines whose last step is one of skvae. The last step is "
            f"{last!r}."
        )
    elif is_classifier(last):
        options[id(last)] = {"zipmap": False}  # probabilities as one matrix
    known = X is None or type(pipeline.steps[0][1]) in METHODS
    types = _types_known(pipeline, precision) if known else _types_of(X, precision)
    opsets = {"": OPSET, "ai.onnx.ml": ML_OPSET}
    model = convert_sklearn(pipeline, "skvae", types, target_opset=opsets, options=options)
    _rename_inputs(model, [name for name, _ in types])
    by_domain = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(by_domain)
    properties = {"skvae_version": VERSION, "estimator": "Pipeline", "method": method or "default"}
    helper.set_model_props(model, properties)
    return model


def _rename_inputs(model: ModelProto, names: Sequence[str]) -> None:
    """Give the inputs back the names of the columns: skl2onnx makes identifiers of them."""
    graph = model.graph
    new = {one.name: name for one, name in zip(graph.input, names, strict=True)}
    taken = {name for node in graph.node for name in node.output}
    for name in taken & set(names):
        new[name] = next(f"{name}_{n}" for n in itertools.count() if f"{name}_{n}" not in taken)
    for one in (*graph.input, *graph.output):
        one.name = new.get(one.name, one.name)
    _rename(graph.node, new)


def _rename(nodes: Iterable[NodeProto], new: Mapping[str, str]) -> None:
    for node in nodes:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g.node, new)


def _types_known(pipeline: Pipeline, precision: str) -> list[tuple[str, Any]]:
    """Return names and types of the inputs, where the first step of a pipeline knows them."""
    first = pipeline.steps[0][1]
    if type(first) in METHODS:
        vae = first if isinstance(first, VAETransformer) else first.vae_
        feeds = feeds_of(vae.model_, getattr(torch, precision))
        kinds = {element: kind for kind, element in ELEMENTS.items()}
        return [(feed.name, kinds[feed.element]([None, feed.n_columns])) for feed in feeds]
    if hasattr(pipeline, "feature_names_in_"):
        raise ValueError(
            "The pipeline was fitted to a frame, whose dtypes it does not know any more. Give some "
            "rows of it as X."
        )
    return [("X", FLOATS[precision]([None, pipeline.n_features_in_]))]


def _types_of(X: Any, precision: str) -> list[tuple[str, Any]]:
    """Return names and types of the inputs for rows like X."""
    if library_of(X) is None:
        if not is_numbers(X):
            raise TypeError("X must be a frame, or an array of numbers.")
        return [("X", FLOATS[precision]([None, X.shape[1]]))]
    pairs = zip(X.columns, columns_of(X), strict=True)
    return [(str(name), _type_of(str(name), values, precision)) for name, values in pairs]


def _type_of(name: str, values: Any, precision: str) -> Any:
    """Return the type of an input; only of floats and texts can one hold a hole."""
    raw = raw_column(values, name)
    if raw.kind == "category" and all(isinstance(level, str) for level in raw.levels):
        return data_types.StringTensorType([None, 1])
    kind = values.dtype.kind if isinstance(values.dtype, np.dtype) else "nullable"
    if kind == "b":
        return data_types.BooleanTensorType([None, 1])
    if kind in "iu":
        return data_types.Int64TensorType([None, 1])
    return FLOATS[precision]([None, 1])
