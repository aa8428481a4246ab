"""How a network looks by its name."""

import pytest

from suite.report import look


@pytest.mark.parametrize(
    ("model", "title", "shape", "weight"),
    [
        ("resnet20_relu_bn", "ReLU + BatchNorm", "circle", 1),
        ("resnet110_w12_crelu_bn", "CReLU + BatchNorm, 12 filters", "triangle", 0.75),
        ("resnet20_w32_relu_nobias", "ReLU + Plain (no bias), 32 filters", "circle", 2),
        ("resnet20_inner_gelu_gn", "gelu + gn, inner", "diamond", 1),
    ],
)
def test_a_name_says_how_its_network_looks_and_reads(model: str, title: str, shape: str, weight: float) -> None:
    found = look.net(model)
    assert (found.title, found.shape, found.weight) == (title, shape, weight)


def test_no_normalisation_has_the_colour_of_another_or_of_a_reference() -> None:
    colors = [look.net(f"resnet20_relu_{name}").color for name in look.NORMALIZATIONS]
    assert len(set(colors)) == len(look.NORMALIZATIONS)
    own = look.net("resnet20_relu_gn").color
    assert own in look.OWN
    assert look.net("plain CNN").color == look.REFERENCE not in [*colors, own]


@pytest.mark.parametrize(("palette", "ground"), [(look.PALETTE, 1.0), (look.DARK, 0.0095)], ids=["light", "dark"])
def test_marks_stand_out_from_the_ground(palette: tuple[str, ...], ground: float) -> None:
    for color in palette:
        light, dark = sorted((luminance(color), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, f"{color}: WCAG 2, graphics"


def luminance(color: str) -> float:
    shares = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
