"""Write a trained network's weights in timm's local layout, as `suite.export.weights` reads them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models import save_for_hf
from torch import nn

from suite.data.sets import Dataset


def save_weights(model: nn.Module, out: Path, model_args: Mapping[str, object], dataset: Dataset) -> None:
    """Write weights and what timm needs to load them: class count, class names, mean and std on [0, 1]."""
    statistics = {name: [value / 255 for value in getattr(dataset, name)] for name in ("mean", "std")}
    config = {"pretrained_cfg": statistics | {"label_names": list(dataset.classes)}}
    model = model.cpu().to(memory_format=torch.contiguous_format)
    save_for_hf(model, str(out), model_config=config, model_args=dict(model_args), safe_serialization=True)
