"""Published weights of these networks, which a checkout has beside this package:
`results/published`."""

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import DefaultCfg, PretrainedCfg

FOLDER = Path(__file__).parent.parent / "results" / "published"
# The list that `suite list weights` makes from the records; an installation without a checkout has none.
INDEX = FOLDER / "weights.json"


def with_weights(configurations: Mapping[str, Mapping[str, Any]]) -> dict[str, DefaultCfg]:
    """Configurations by model's name as timm keeps them, each followed by those of its
    published weights.

    The first, without a tag and without weights, stays what a bare name means.
    """
    weights: list[dict[str, Any]] = json.loads(INDEX.read_text("utf-8"))["weights"] if INDEX.is_file() else []
    found = {
        name: DefaultCfg(deque([""]), {"": PretrainedCfg(**configuration)})
        for name, configuration in configurations.items()
    }
    for each in weights:
        file = FOLDER / each["file"]
        name, _, tag = each["name"].partition(".")
        if name not in found or not file.is_file():
            continue
        own = {key: each[key] for key in ("num_classes", "mean", "std")}
        found[name].tags.append(tag)
        found[name].cfgs[tag] = PretrainedCfg(**{**configurations[name], **own, "file": str(file)})
        found[name].is_pretrained = True
    return found
