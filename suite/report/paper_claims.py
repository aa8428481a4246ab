"""The paper's claims: what it says, and which comparisons of nets decide that."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from suite.report.entries import Entry
from suite.results import samples

# Entries of one data set and depth by the rest of the model's name, such as "crelu_bn".
Nets = Mapping[str, Entry]

# "A different order of magnitude" (the paper, of Figure 2).
MAGNITUDE = 10
# Table 1 prints the share of non-zero entries with two decimals.
DECIMALS = 0.005
# Nets of which the first must have fewer non-zero entries than the second, and those of which half must be non-zero.
SPARSER = (("relu_plain", "relu_bn"), ("relu_np", "relu_bn"))
HALF = ("crelu_plain", "crelu_np2", "crelu_bn")


@dataclass(frozen=True)
class Part:
    """One comparison: whether it holds (None: too close to tell), its figures in words,
    and the nets that it is of.

    Attributes:
        ours, paper: the figures alone, and the paper's where it prints them.
        margin: what the difference is, and what chance makes of it in 95 % of cases.
    """

    holds: bool | None
    figures: str
    nets: tuple[Entry, ...]
    ours: str
    paper: str = ""
    margin: str = ""


@dataclass(frozen=True)
class Claim:
    """What the paper says in `words`, and when it counts as true here.

    Attributes:
        tables: whose rows it is about.
        pairs: nets whose error must be less, each with the one that must have more.
        look: for claims about what is inside: the comparisons that the nets' analyses
            allow.
        of: for each comparison of `look`, the nets that it needs.
    """

    title: str
    words: str
    criterion: str
    tables: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    look: Callable[[Nets], Iterable[Part]] = lambda nets: ()
    of: tuple[tuple[str, ...], ...] = ()

    @property
    def comparisons(self) -> tuple[tuple[str, ...], ...]:
        """The nets of each comparison that the claim makes."""
        return (*self.pairs, *self.of)


def sign(a: float, b: float) -> str:
    return "<" if a < b else ">" if a > b else "="


def pair_in_words(a: float, b: float) -> str:
    one, other = ("did not train" if math.isinf(value) else f"{value:.2f}" for value in (a, b))
    return f"{one} {sign(a, b)} {other}"


def _deltas(nets: Nets) -> Iterator[tuple[Entry, list[float]]]:
    """The nets whose analysis has Delta, block by block."""
    for net in nets.values():
        if blocks := net.runs.analyze[0].result.blocks:
            yield net, blocks.delta


def _spread(nets: Nets) -> Iterator[Part]:
    for net, delta in _deltas(nets):
        figures = f"{net.row.model}: Delta from {min(delta):.3g} to {max(delta):.3g} over {len(delta)} blocks"
        ours = f"{min(delta):.3g} to {max(delta):.3g}"
        yield Part(max(delta) < MAGNITUDE * min(delta), figures, (net,), ours, "1 to 5")


def _late(nets: Nets) -> Iterator[Part]:
    for net, delta in _deltas(nets):
        first = 2 * len(delta) // 3
        early, late = samples.median(delta[:first]), samples.median(delta[first:])
        figures = f"{net.row.model}: median Delta {early:.3g} in blocks 1 to {first}, {late:.3g} after them"
        yield Part(late >= MAGNITUDE * early, figures, (net,), f"{early:.3g}, then {late:.3g}", "hardly any, then 10 x")


def _nonzero(net: Entry) -> float:
    return samples.median([record.result.activation.nonzero for record in net.runs.analyze])


def _sparse(nets: Nets) -> Iterator[Part]:
    for fewer, more in SPARSER:
        if fewer in nets and more in nets and nets[fewer].epochs == nets[more].epochs:
            pair = nets[fewer], nets[more]
            a, b = map(_nonzero, pair)
            figures = f"{_share(pair[0], a)} {'<' if a < b else '>='} {_share(pair[1], b)}"
            stated = pair_in_words(*(net.row.paper["nonzero"] for net in pair))
            yield Part(a < b, figures, pair, pair_in_words(a, b), stated)
    for key in HALF:
        if key in nets:
            share = _nonzero(nets[key])
            holds, paper = abs(share - 0.5) < DECIMALS, f"{nets[key].row.paper['nonzero']:.2f}"
            yield Part(holds, _share(nets[key], share), (nets[key],), f"{share:.2f}", paper)


def _share(net: Entry, share: float) -> str:
    return f"{net.row.model} {share:.2f} (paper {net.row.paper['nonzero']:.2f})"


CLAIMS = (
    Claim(
        "CReLU helps with BatchNorm",
        "CReLU is an effective add-on to BatchNorm, to improve upon state-of-the-art performance.",
        "the test error with CReLU is less",
        (2, 4),
        (("crelu_bn", "relu_bn"),),
    ),
    Claim(
        "CReLU helps without BatchNorm",
        "CReLU improves the performance of ResNets without normalisation, and with NormProp's variants.",
        "the test error with CReLU is less: plain, without bias, NormProp2, NormProp3",
        (2, 4),
        tuple((f"crelu_{norm}", f"relu_{norm}") for norm in ("plain", "nobias", "np2", "np3")),
    ),
    Claim(
        "CReLU helps at equal size",
        "Models of similar size, made so by fewer filters, are better with CReLU.",
        "the test error with CReLU is less",
        (3,),
        (("w12_crelu_bn", "relu_bn"), ("w24_crelu_bn", "w32_relu_bn")),
    ),
    Claim(
        "BatchNorm is better than NormProp2, and that than NormProp",
        "The modified NormProp performs better than the original, but is still not comparable to BatchNorm.",
        "the test error of NormProp2 is less than that of NormProp, and that of BatchNorm less than both",
        (2, 4),
        (("relu_np2", "relu_np"), ("relu_bn", "relu_np"))
        + tuple((f"{act}_bn", f"{act}_{norm}") for act in ("relu", "crelu") for norm in ("np2", "np3")),
    ),
    Claim(
        "BatchNorm spreads Delta over all blocks",
        "With BatchNorm, Delta settles at around 1 to 5 for all residual blocks.",
        f"the greatest Delta of a block is less than {MAGNITUDE} times the least",
        (1,),
        look=_spread,
        of=(("relu_bn",), ("crelu_bn",)),
    ),
    Claim(
        "Plain nets learn in the last third",
        "Without BatchNorm there is hardly any Delta in the first 36 of 54 blocks, then another order of magnitude.",
        f"the median Delta of the last third of the blocks is at least {MAGNITUDE} times that of the others",
        (1,),
        look=_late,
        of=(("relu_plain",), ("crelu_plain",)),
    ),
    Claim(
        "Non-zero ratio: low without BatchNorm, one half with CReLU",
        "With BatchNorm about half of the last activations are not zero, with plain ReLU 14 %, with CReLU always half.",
        "with ReLU the ratio is less without BatchNorm than with it; with CReLU it is 0.50",
        (1,),
        look=_sparse,
        of=(*SPARSER, *((key,) for key in HALF)),
    ),
)
