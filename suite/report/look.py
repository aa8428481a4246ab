"""The colour, shape and size that stand for a network in every plot and table.

The colour is its normalisation, the shape its activation, the size its width. A colour
means the same on the page, in the files beside it and in the README's picture.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Literal

Shape = Literal["circle", "triangle", "diamond"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, darker where white paper asks for it. The last
# three are for normalisations of one's own.
PALETTE = (
    "#0072b2", "#d55e00", "#767676", "#009e73", "#b3609a", "#a87900", "#3a9bd9", "#7f3b08", "#542788", "#1b7837",
)  # fmt: skip
# The same on a dark ground.
DARK = (
    "#4da3e0", "#f28e4b", "#a3a3a3", "#2fc79b", "#e39ac2", "#e0b63c", "#9ad4f7", "#c98a5a", "#a68bd9", "#6cc07f",
)  # fmt: skip
# What is no network of a table: the front, or a net that another is held against.
REFERENCE = 2
OWN = (7, 8, 9)

NORMALIZATIONS = {
    "bn": ("BatchNorm", 0),
    "plain": ("Plain", 1),
    "nobias": ("Plain (no bias)", 5),
    "np": ("NormProp", 3),
    "np2": ("NormProp2", 4),
    "np3": ("NormProp3", 6),
}
ACTIVATIONS: dict[str, tuple[str, Shape]] = {"relu": ("ReLU", "circle"), "crelu": ("CReLU", "triangle")}
SHAPES: tuple[Shape, ...] = ("circle", "triangle", "diamond")
# What networks are held against that is none of a table.
PLAIN_CNN = "plain CNN"
# Filters of the first blocks of a network whose name does not say.
WIDTH = 16


@dataclass(frozen=True)
class Net:
    """A network by the parts of its name.

    Attributes:
        depth: such as "ResNet-20".
        title: activation, normalisation and what else is in the name, such as "CReLU +
            BatchNorm, 32 filters".
        kind: activation and normalisation alone.
        normalization: that alone.
        color: index into `PALETTE`.
        shape: of its points; lines of circles are broken.
        weight: width beside that of a network of usual width.
    """

    depth: str
    title: str
    kind: str
    normalization: str
    color: int
    shape: Shape
    weight: float


def net(model: str) -> Net:
    """A model such as "resnet20_w32_crelu_bn", and what may stand in brackets behind
    it, as it looks and reads; a row of another
    name has a look that its name draws, and what is no network of a table is a
    reference."""
    depth, *parts = model.partition(" (")[0].split("_")
    if model != PLAIN_CNN and (len(parts) < 2 or not re.fullmatch(r"resnet\d+", depth)):
        number = zlib.crc32(model.encode())
        return Net("", model, model, model, number % len(PALETTE), SHAPES[number % len(SHAPES)], 1.0)
    if len(parts) < 2:
        return Net("", model, model, model, REFERENCE, "diamond", 1.0)
    *others, activation, normalization = parts
    norm, color = NORMALIZATIONS.get(normalization, (normalization, OWN[zlib.crc32(normalization.encode()) % len(OWN)]))
    act, shape = ACTIVATIONS.get(activation, (activation, "diamond"))
    width, extra = WIDTH, []
    for each in others:
        filters = re.fullmatch(r"w(\d+)", each)
        width = int(filters[1]) if filters else width
        extra.append(f"{width} filters" if filters else each)
    kind = f"{act} + {norm}"
    return Net(depth.replace("resnet", "ResNet-"), ", ".join([kind, *extra]), kind, norm, color, shape, width / WIDTH)
