"""ONNX files that a user names, whoever made them: they are read if this project could
have written them."""

from pathlib import Path
from typing import Any

from suite.errors import InputError
from suite.schema.outcomes import none_if_unset
from suite.tables import spec


def read(path: Path) -> Any:
    """The file as a message, if it is of the form that this project writes and lies in
    this one file.

    Nothing else is read, whatever the file says of where its weights are.

    Raises:
        InputError: it is not.
    """
    import onnx

    from suite.export.exporter import OPSET
    from suite.export.graphs import load, tensors

    model = load(path)
    for tensor in tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise InputError(f"{path}: {tensor.name!r} lies outside the file, in {where!r}, which is not read")
    found = {entry.domain: entry.version for entry in model.opset_import}
    opset = found.pop("", found.pop("ai.onnx", None))
    if opset != OPSET:
        raise InputError(f"{path}: its opset is {opset}; it must be {OPSET}, as `export` writes")
    ends = [[value.name for value in ends] for ends in (model.graph.input, model.graph.output)]
    if ends != [["input"], ["logits"]]:
        raise InputError(
            f"{path}: its inputs and outputs are {ends}; they must be one input, 'input', and one output, 'logits'"
        )
    image, logits = _sides(model.graph.input[0])[1:], _sides(model.graph.output[0])[1:]
    if not (len(image) == 3 and image[0] > 0 and image[1] == image[2] and 0 < image[1] <= spec.LARGEST_SIDE):
        raise InputError(
            f"{path}: its input is {image}; it must be [channels, size, size] with a size of 1 to {spec.LARGEST_SIDE}"
        )
    if not (len(logits) == 1 and logits[0] > 0):
        raise InputError(f"{path}: its logits are {logits}; they must be [classes]")
    return model


def _sides(value: Any) -> list[int]:
    """Sides of a graph's input or output; 0 for one that is free."""
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


def image_size(model: Any) -> int:
    """Side of the square images that a file takes, in pixels."""
    return _sides(model.graph.input[0])[-1]


def channels(model: Any) -> int:
    """How many channels the images have that a file takes."""
    return _sides(model.graph.input[0])[1]


def classes(model: Any) -> int:
    """How many classes a file tells apart."""
    return _sides(model.graph.output[0])[1]


def metadata(model: Any) -> dict[str, str]:
    """What a file says of itself, by name."""
    return {entry.key: entry.value for entry in model.metadata_props}


def model_in_metadata(path: Path, model: Any) -> str:
    """What a file that was exported from initial weights says of its model."""
    import timm

    import models  # noqa: F401 - registers the networks with timm

    stated = metadata(model)
    if stated.get("trained") != "false":
        raise InputError(
            f"{path}: made from a run's weights; give them by --weights FOLDER, "
            "or --weights FILE.safetensors if they were given so"
        )
    if stated.get("model") not in timm.list_models(module="crelu_resnet"):
        raise InputError(f"{path}: says that its model is {stated.get('model')!r}, which is not one of this project's")
    return str(stated["model"])


def precision(path: Path) -> str:
    """That of a file which this project wrote."""
    from suite.export.exporter import describe

    if "QuantizeLinear" in (none_if_unset(describe(path).operators) or {}):
        return "int8"
    import onnx

    weights = onnx.load(path).graph.initializer
    return "fp16" if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights) else "fp32"
