"""A look into a model in the ONNX format before any of it is used.

The runtime would follow the path of data that lies outside the file, and knows operators beyond the standard: both are
refused here. The numbers of the fields are those of onnx.proto in github.com/onnx/onnx; a field that is not named here
is skipped by the parser.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from mnist_pipeline.ml.errors import ModelError

STANDARD_DOMAINS = ("", "ai.onnx")
"""Both name the standard operator set."""

EXTERNAL = 1
"""The location of a tensor's data is another file (TensorProto.DataLocation)."""

FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph"), "opset_import": (8, "OperatorSet"), "functions": (25, "Function")},
    "OperatorSet": {"domain": (1, "")},
    "Function": {},
    "Graph": {"node": (1, "Node"), "initializer": (5, "Tensor"), "sparse_initializer": (15, "SparseTensor")},
    "Node": {"attribute": (5, "Attribute"), "domain": (7, "")},
    "Attribute": {
        **{"t": (5, "Tensor"), "tensors": (10, "Tensor"), "g": (6, "Graph"), "graphs": (11, "Graph")},
        **{"sparse_tensor": (22, "SparseTensor"), "sparse_tensors": (23, "SparseTensor")},
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {"name": (8, ""), "external_data": (13, "Entry"), "data_location": (14, "number")},
    "Entry": {},
}
"""The fields that are looked at in each message: number, and message, text ("") or number."""


def require_standard(model: bytes) -> None:
    """Raise ModelError unless the model is one whole file that uses the standard operators only."""
    content = _model_class()()
    try:
        content.ParseFromString(model)
    except DecodeError as error:
        raise ModelError(f"the model is not an ONNX file: {error}") from None
    if not content.graph:
        raise ModelError("the model is not an ONNX file: it has no graph")
    domains = {name for operators in content.opset_import for name in operators.domain}
    if foreign := sorted(domains - {*STANDARD_DOMAINS}):
        raise ModelError(f"the model uses operators that are not of the standard: {', '.join(foreign)}")
    if content.functions:
        raise ModelError("the model brings operators of its own (functions), and only the standard ones are accepted")
    for graph in content.graph:
        _require_standard_graph(graph)


def _require_standard_graph(graph: Any) -> None:
    tensors = [*graph.initializer, *_parts(graph.sparse_initializer)]
    for node in graph.node:
        if foreign := {*node.domain} - {*STANDARD_DOMAINS}:
            raise ModelError(f"the model uses an operator that is not of the standard: {', '.join(foreign)}")
        for attribute in node.attribute:
            tensors += [*attribute.t, *attribute.tensors]
            tensors += _parts([*attribute.sparse_tensor, *attribute.sparse_tensors])
            for inner in (*attribute.g, *attribute.graphs):
                _require_standard_graph(inner)
    for tensor in tensors:
        if tensor.external_data or EXTERNAL in tensor.data_location:
            name = ", ".join(tensor.name) or "a tensor"
            raise ModelError(f"the data of {name} lie outside the model file, which is refused")


def _parts(sparse: Any) -> Iterator[Any]:
    return (tensor for one in sparse for tensor in (*one.values, *one.indices))


@cache
def _model_class() -> Any:
    """The class that parses FIELDS. All are repeated there, so that a field that is sent twice hides nothing."""
    kinds: Any = descriptor_pb2.FieldDescriptorProto  # type: ignore[attr-defined]  # made when it is imported
    file: Any = descriptor_pb2.FileDescriptorProto(  # type: ignore[attr-defined]
        name="onnx_parts.proto", package="onnx_parts", syntax="proto2"
    )
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=kinds.LABEL_REPEATED)
            if kind in FIELDS:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".onnx_parts.{kind}"
            else:
                added.type = kinds.TYPE_INT32 if kind else kinds.TYPE_STRING
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx_parts.Model"))
