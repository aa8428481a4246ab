"""Published weights of these networks, which a checkout has beside this package:
`results/published`."""

import json
import warnings
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
    found = {
        name: DefaultCfg(deque([""]), {"": PretrainedCfg(**configuration)})
        for name, configuration in configurations.items()
    }
    try:
        weights = [_entry(each) for each in json.loads(INDEX.read_text("utf-8"))["weights"]] if INDEX.is_file() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{INDEX}: is no index of weights ({error!r}), of which timm then finds none", stacklevel=2)
        weights = []
    for (name, tag), own in weights:
        if name in found and Path(own["file"]).is_file():
            found[name].tags.append(tag)
            found[name].cfgs[tag] = PretrainedCfg(**{**configurations[name], **own})
            found[name].is_pretrained = True
    return found


def _entry(each: Mapping[str, Any]) -> tuple[tuple[str, str], dict[str, Any]]:
    """Model and tag of an entry, and what its configuration says of its own."""
    name, _, tag = each["name"].partition(".")
    own = {key: each[key] for key in ("num_classes", "mean", "std")}
    return (name, tag), {**own, "file": str(FOLDER / each["file"])}
