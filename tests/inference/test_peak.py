"""What may be the fastest that a machine can do."""

import numpy as np
import pytest

from suite.inference import peak
from suite.session import open_session


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_all_that_is_tried_can_be_run_and_gives_numbers(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "PRODUCTS", {"cpu": (16, 32)})
    monkeypatch.setattr(peak, "CONVOLUTIONS", {"cpu": ((2, 8, 10),)})
    found = list(peak.candidates("cpu", precision))
    assert [each.name for each in found] == [
        "product of 16 x 16",
        "product of 32 x 32",
        "4 convolutions of 2 x 8 x 10 x 10",
    ]
    for each in found:
        (out,) = open_session(each.model.SerializeToString(), "cpu", 1).run(None, each.inputs)
        assert np.isfinite(out.astype(np.float64)).all()
        assert out.any(), "a chain of zeros may be faster than any other"


def test_operations_are_multiplications_and_additions_counted_by_hand() -> None:
    counted = {each.name: each.operations for each in peak.candidates("cpu", "int8")}
    assert counted["product of 2048 x 2048"] == 2 * 2048 * 2048 * 2048 == 17_179_869_184
    # Each of 4 x 28 x 28 x 128 outputs takes 128 x 3 x 3 multiplications and as many additions, four times.
    assert (
        counted["4 convolutions of 4 x 128 x 28 x 28"] == 4 * (4 * 28 * 28 * 128) * (128 * 3 * 3) * 2 == 3_699_376_128
    )
    assert len(counted) == 6


def test_cuda_has_no_int8_convolution_among_the_candidates_for_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "PRODUCTS", {"cuda": (16,)})
    monkeypatch.setattr(peak, "CONVOLUTIONS", {"cuda": ((2, 8, 10),)})
    assert len(list(peak.candidates("cuda", "int8"))) == 1
    assert len(list(peak.candidates("cuda", "fp16"))) == 2
