"""Write a trained network to a folder, and export one from it, whether it is this
project's or another's."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from suite.export import zoo
from suite.schema.outcomes import ExportResult

if TYPE_CHECKING:
    from torch import nn


def export(weights: Path, size: int, out: Path, metadata: dict[str, str], rewrite: bool = True) -> ExportResult:
    """Write the network in a folder of weights as an ONNX file for images of size x
    size pixels, of a free batch size.

    Args:
        weights: a folder in timm's local layout.
        size: side of an image in pixels.
        out: the file.
        metadata: what the file is to say of itself.
        rewrite: use the rewrites for ONNX Runtime's CPU provider, of a network that is
            not this project's those that apply.

    Raises:
        RuntimeError: there is no graph of it, or none with a free batch size.
    """
    of = zoo.from_folder(weights)
    if of.ours:
        from suite.export import exporter

        return exporter.export(weights, size, out, metadata, rewrite)
    from suite.export import generic

    found = generic.export(zoo.build(of), (of.input_size[0], size, size), out, metadata, rewrite)
    if found["batch"] != "free":
        raise RuntimeError(f"the exported graph has no free batch size, which tables need: {found['warnings'][0]}")
    kept = {name: found[name] for name in ("opset", "operators", "bytes", "parameters", "macs")}
    return ExportResult(**kept, rewrites=found["rewrites"] if rewrite else UNSET)


def save(model: "nn.Module", name: str, arguments: dict[str, Any], described: dict[str, Any], out: Path) -> None:
    """Write a trained network to a folder in timm's local layout, from which `zoo.load`
    reads it.

    Args:
        model: the network.
        name: by which timm makes it.
        arguments: with which.
        described: what else the folder is to say of it: `mean` and `std` on [0, 1], and
            `label_names`.
        out: the folder.
    """
    import torch
    from timm.models import save_for_hf

    model = model.cpu().to(memory_format=torch.contiguous_format)
    if zoo.is_ours(name):
        config = {"pretrained_cfg": described}
        save_for_hf(model, str(out), model_config=config, model_args=arguments, safe_serialization=True)
    else:  # which need not have what timm's own networks say of themselves
        zoo.save(zoo.Network(name, None, False, arguments, described), model, out)
