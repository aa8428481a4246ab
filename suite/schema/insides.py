"""What a trained network looks like inside, as types: the results of Table 1 and of
Figures 2 and 3, field by field with its unit."""

from msgspec import UNSET, Struct, UnsetType

from suite.schema.inputs import Int
from suite.schema.outcomes import Numbers


class Moments(Struct, frozen=True, kw_only=True, gc=False):
    """Mean and population standard deviation of `count` values; None if there are
    none."""

    count: Int | UnsetType = UNSET
    mean: float | None
    std: float | None


class Activation(Struct, frozen=True, kw_only=True, gc=False):
    """Table 1: the last activation before the classifier, in three readings, because
    the paper does not name one.

    Attributes:
        nonzero: share of the entries that are not zero, 0 to 1, by count (the paper's
            NZR).
        over_nonzero: over those entries.
        over_all: over all entries: images, channels and positions. The paper cannot
            mean this one: a share p that is not zero allows no std/mean below sqrt(1/p
            - 1), and three of its six rows are below.
        pooled: over images and channels, after the global average pool.
    """

    nonzero: float
    over_nonzero: Moments
    over_all: Moments
    pooled: Moments


class Blocks(Struct, frozen=True, kw_only=True, gc=False):
    """Figure 2: how much each of the named `blocks` changes its input, by depth.

    Attributes:
        blocks: names, such as "layer1.0".
        delta: the paper's Delta with the output that its definition names, f(x) + x,
            before the activation that follows the addition: the size of what the
            residual path adds.
        delta_after_relu: the same with what the block hands on: ReLU(f(x) + x), with
            NormProp's BatchNorm of the sum and its constants where a network has them.
            A `PreActBasicBlock` hands on the sum, so that both are the same there
            unless it has that BatchNorm.
    """

    blocks: list[str] | UnsetType = UNSET
    delta: Numbers
    delta_after_relu: Numbers | UnsetType = UNSET


class Coherence(Struct, frozen=True, kw_only=True, gc=False):
    """Figure 3: coherence `mu`, 0 to 1, of the convolutions `layers`, by depth."""

    layers: list[str] | UnsetType = UNSET
    mu: Numbers


class AnalyzeResult(Struct, frozen=True, kw_only=True, gc=False):
    """What a trained network looks like inside, measured on so many test `images`."""

    images: Int | UnsetType = UNSET
    activation: Activation
    blocks: Blocks | UnsetType = UNSET
    coherence: Coherence | UnsetType = UNSET
