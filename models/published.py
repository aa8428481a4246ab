"""Published weights of these networks, which a checkout has beside this package:
`results/published`."""

import hashlib
import json
import operator
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import DefaultCfg, PretrainedCfg

FOLDER = Path(__file__).parent.parent / "results" / "published"
# The list that `suite list weights` makes from the records; an installation without a checkout has none.
INDEX = FOLDER / "weights.json"
# SHA-256 of the files that `with_weights` has listed, by path.
_digests: dict[str, str] = {}


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{INDEX}: is no index of weights ({error!r}), of which timm then finds none", stacklevel=2)
        weights = []
    for (name, tag), own, digest in weights:
        if name in found:
            _digests[own["file"]] = digest
            found[name].tags.append(tag)
            found[name].cfgs[tag] = PretrainedCfg(**{**configurations[name], **own})
            found[name].is_pretrained = True
    return found


def require_as_published(file: str | None) -> None:
    """See to it that a file of published weights is there and was not changed; no other
    file is looked at.

    Raises:
        RuntimeError: it is not; one line.
    """
    if file in _digests:
        path = Path(file)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _digests[file]:
            what = "is not as it was published" if path.is_file() else "is missing"
            raise RuntimeError(f"{file}: {what}; git checkout results/published restores it")


def _entry(each: Mapping[str, Any]) -> tuple[tuple[str, str], dict[str, Any], str]:
    """Model and tag of an entry, what its configuration says of its own, and the digest
    of its file."""
    name, _, tag = each["name"].partition(".")
    mean, std = ([float(value) for value in each[key]] for key in ("mean", "std"))
    own = {"num_classes": operator.index(each["num_classes"]), "mean": mean, "std": std}
    return (name, tag), {**own, "file": str(FOLDER / each["file"])}, str(each["sha256"])
