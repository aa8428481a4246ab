"""The paper's claims held against records that were written, not measured."""

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from suite.report import findings
from suite.report.entries import Entry
from suite.report.findings import Finding
from suite.report.paper_claims import CLAIMS
from suite.report.runs import Records
from suite.results.store import Store
from suite.tables import spec

# What an analysis says of the last activations.
ACTIVATION = {"nonzero": 0.5} | {name: {"mean": 1.0, "std": 1.0} for name in ("over_nonzero", "over_all", "pooled")}

AddRun = Callable[..., dict[str, Any]]
WITH, WITHOUT, SIZE, ORDER, SPREAD, LATE, NONZERO = range(7)


def judge(store: Store, claim: int, depth: int | None = None) -> list[Finding]:
    """What is found of one claim, in the paper's tables and, with a depth, in those of that depth."""
    records = Records([store])
    tables = [spec.load_table(number) for number in spec.NUMBERS]
    tables += [spec.with_depth(table, depth) for table in tables if depth and table.depth]
    entries = [Entry(table, row, records.runs(table, row)) for table in tables for row in table.rows]
    return findings.judge(entries)[claim][1]


def of(found: list[Finding], where: str) -> Finding:
    (finding,) = [finding for finding in found if finding.where == where]
    return finding


def look(store: Store, run: dict[str, Any], delta: list[float], nonzero: float = 0.5) -> None:
    train = run["train"]
    result = {"blocks": {"delta": delta}, "activation": ACTIVATION | {"nonzero": nonzero}}
    store.put("analyze", {"model": train.inputs["model"], "train": train.key}, result, {}, {})


def test_without_records_no_claim_is_measured(store: Store) -> None:
    for claim in range(len(CLAIMS)):
        found = judge(store, claim)
        assert found
        assert all((finding.verdict, finding.figures) == ("not yet measured", ()) for finding in found)


@pytest.mark.parametrize(
    ("crelu", "verdict", "sign"),
    [(5.5, "confirmed", "<"), (7.5, "contradicted", ">"), (6.4, "too close to tell", "<")],
)
def test_a_difference_decides_from_two_standard_errors_on(
    store: Store, add_run: AddRun, crelu: float, verdict: str, sign: str
) -> None:
    # Of 10,000 test images: the standard error of the difference is 0.34 points.
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_crelu_bn", top1=crelu)
    finding = of(judge(store, WITH), "CIFAR-10, ResNet-110")
    assert finding.verdict == verdict
    assert finding.figures[0].startswith(f"resnet110_crelu_bn {crelu:.2f} (paper 5.72) {sign} resnet110_relu_bn 6.50")
    assert finding.caveats == ("1 of 5 seeds",)


def test_of_several_seeds_their_own_spread_decides(store: Store, add_run: AddRun) -> None:
    for seed, shift in enumerate((-0.1, 0.0, 0.1)):
        add_run("resnet110_relu_bn", seed=seed, top1=6.5 + shift)
        add_run("resnet110_crelu_bn", seed=seed, top1=6.2 + shift)
    assert of(judge(store, WITH), "CIFAR-10, ResNet-110").verdict == "confirmed"


def test_one_seed_each_does_not_decide_what_another_could_turn(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_crelu_bn", top1=5.8)  # 2.2 deviations of the test images alone
    assert of(judge(store, WITH), "CIFAR-10, ResNet-110").verdict == "too close to tell"


def test_students_t_is_that_of_the_books() -> None:
    books = ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (8, 2.306), (20, 2.086), (math.inf, 1.960))
    for freedom, value in books:
        assert findings._sure(freedom) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(
    ("spreads", "freedom", "t"),
    [((0.1, 0.1), 4.0, 2.776), ((0.1, 0.0), 2.0, 4.303), ((0.1, 0.2), 2.941, 3.219), ((0.1, 0.01), 2.040, 4.228)],
)
def test_the_seeds_of_both_nets_decide_by_welchs_test_from_both_sides(
    store: Store, add_run: AddRun, spreads: tuple[float, float], freedom: float, t: float
) -> None:
    # Of three seeds around the middle with this distance, the standard deviation is the distance.
    errors = [findings.MEDIAN * spread / math.sqrt(3) for spread in spreads]
    assert sum(e**2 for e in errors) ** 2 / sum(e**4 / 2 for e in errors) == pytest.approx(freedom, abs=1e-3)
    least = t * math.hypot(*errors)  # the least difference that counts
    for sign, share, verdict in (
        (-1, 1.01, "confirmed"),
        (-1, 0.99, "too close to tell"),
        (1, 0.99, "too close to tell"),
        (1, 1.01, "contradicted"),
    ):
        for seed, place in enumerate((-1, 0, 1)):
            add_run("resnet110_relu_bn", seed=seed, top1=6.5 + place * spreads[0])
            add_run("resnet110_crelu_bn", seed=seed, top1=6.5 + sign * share * least + place * spreads[1])
        assert of(judge(store, WITH), "CIFAR-10, ResNet-110").verdict == verdict
        shutil.rmtree(store.root)


def test_one_comparison_that_fails_contradicts_a_claim_and_those_that_lack_are_said(
    store: Store, add_run: AddRun
) -> None:
    for act, norm, top1 in (("relu", "np", 11.0), ("relu", "np2", 7.5), ("relu", "bn", 6.0)):
        add_run(f"resnet110_{act}_{norm}", top1=top1)
    finding = of(judge(store, ORDER), "CIFAR-10, ResNet-110")
    assert finding.verdict == "confirmed in part"
    assert "3 of 4 comparisons measured" in finding.caveats
    add_run("resnet110_crelu_bn", top1=9.0)
    add_run("resnet110_crelu_np2", top1=7.0)
    finding = of(judge(store, ORDER), "CIFAR-10, ResNet-110")
    assert finding.verdict == "contradicted"
    assert len(finding.figures) == 4


def test_a_net_that_did_not_train_errs_most(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_np", top1=None)
    add_run("resnet110_relu_np2", top1=7.5)
    finding = of(judge(store, ORDER), "CIFAR-10, ResNet-110")
    assert finding.verdict == "confirmed in part"
    assert "resnet110_relu_np did not train (paper 11.60)" in finding.figures[0]


def test_quick_runs_do_not_count(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=90.0, max_steps=4)
    add_run("resnet110_crelu_bn", top1=50.0, data="digits10")
    assert of(judge(store, WITH), "CIFAR-10, ResNet-110").verdict == "not yet measured"


def test_shortened_runs_are_said_and_runs_of_two_lengths_are_not_compared(store: Store, add_run: AddRun) -> None:
    add_run("resnet20_relu_bn", top1=13.0, epochs=10)
    add_run("resnet20_crelu_bn", top1=11.0, epochs=10)
    finding = of(judge(store, WITH, depth=20), "CIFAR-10, ResNet-20")
    assert finding.verdict == "confirmed"
    assert finding.caveats == (
        "shortened runs: 10 of 164 epochs",
        "1 of 5 seeds",
        "ResNet-20, the paper has ResNet-110",
    )
    add_run("resnet20_crelu_bn", top1=8.0, epochs=20)
    assert of(judge(store, WITH, depth=20), "CIFAR-10, ResNet-20").verdict == "not yet measured"


def halved(rate: float) -> list[dict[str, Any]]:
    """What a training tried that ended at this rate."""
    return [{"learning_rate": 0.1, "outcome": "the loss was not finite"}, {"learning_rate": rate, "outcome": "trained"}]


def test_nets_that_were_trained_at_different_learning_rates_are_compared_with_that_said(
    store: Store, add_run: AddRun
) -> None:
    add_run("resnet110_relu_plain", top1=28.0)
    add_run("resnet110_crelu_plain", top1=23.0, tries=halved(0.0125))
    finding = of(judge(store, WITHOUT), "CIFAR-10, ResNet-110")
    words = "resnet110_crelu_plain at an eighth of resnet110_relu_plain's learning rate"
    assert finding.caveats[0] == words
    assert words in finding.how_sure
    add_run("resnet110_crelu_plain", seed=1, top1=23.0)
    finding = of(judge(store, WITHOUT), "CIFAR-10, ResNet-110")
    rates = "resnet110_crelu_plain at a learning rate of 0.0125 and 0.1, resnet110_relu_plain at 0.1"
    assert finding.caveats[0] == rates


def test_the_rate_of_a_net_that_did_not_train_is_not_held_against_another(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_plain", top1=None, tries=halved(0.0125))
    add_run("resnet110_crelu_plain", top1=23.0)
    finding = of(judge(store, WITHOUT), "CIFAR-10, ResNet-110")
    assert finding.verdict == "confirmed in part"
    assert "learning rate" not in finding.how_sure


def test_nets_that_were_trained_in_different_precisions_are_compared_with_that_said(
    store: Store, add_run: AddRun
) -> None:
    add_run("resnet110_relu_bn", top1=6.5, trained_in="float32")
    add_run("resnet110_crelu_bn", top1=5.5, trained_in="bfloat16 autocast")
    finding = of(judge(store, WITH), "CIFAR-10, ResNet-110")
    assert finding.caveats[0] == (
        "resnet110_crelu_bn trained in bfloat16 autocast, resnet110_relu_bn trained in float32"
    )
    add_run("resnet110_relu_plain", top1=8.5)
    add_run("resnet110_crelu_plain", top1=7.5, trained_in="float32")
    finding = of(judge(store, WITHOUT), "CIFAR-10, ResNet-110")
    assert "float32" not in finding.how_sure, "an old record has no precision"


def test_table_3_compares_nets_of_equal_size(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_w12_crelu_bn", top1=5.0)
    assert of(judge(store, SIZE), "CIFAR-10, ResNet-110").verdict == "confirmed"
    assert of(judge(store, SIZE), "CIFAR-100, ResNet-110").verdict == "not yet measured"


def test_delta_within_an_order_of_magnitude_is_spread_over_the_blocks(store: Store, add_run: AddRun) -> None:
    look(store, add_run("resnet110_relu_bn", data="cifar100"), [1.0, 5.0, 2.0])
    finding = of(judge(store, SPREAD), "CIFAR-100, ResNet-110")
    assert (finding.verdict, finding.caveats) == ("confirmed in part", ("1 of 2 comparisons measured",))
    look(store, add_run("resnet110_crelu_bn", data="cifar100"), [1.0, 5.0, 9.0])
    finding = of(judge(store, SPREAD), "CIFAR-100, ResNet-110")
    assert (finding.verdict, finding.caveats) == ("confirmed", ())
    shutil.rmtree(store.root / "records" / "analyze")
    look(store, add_run("resnet110_relu_bn", data="cifar100"), [1.0, 5.0, 2.0])
    look(store, add_run("resnet110_crelu_bn", data="cifar100"), [1.0, 5.0, 20.0])
    finding = of(judge(store, SPREAD), "CIFAR-100, ResNet-110")
    assert finding.verdict == "contradicted"
    assert finding.figures[1] == "resnet110_crelu_bn: Delta from 1 to 20 over 3 blocks"


def test_plain_nets_learn_in_the_last_third_if_delta_is_of_another_order_there(store: Store, add_run: AddRun) -> None:
    # A spike where the size is reduced does not count.
    look(store, add_run("resnet110_relu_plain", data="cifar100"), [0.1, 9.0, 0.1, 0.1, 2.0, 4.0])
    finding = of(judge(store, LATE), "CIFAR-100, ResNet-110")
    assert finding.verdict == "confirmed in part"
    assert finding.figures == ("resnet110_relu_plain: median Delta 0.1 in blocks 1 to 4, 3 after them",)
    look(store, add_run("resnet110_crelu_plain", data="cifar100"), [1.0, 1.0, 1.0, 1.0, 2.0, 4.0])
    assert of(judge(store, LATE), "CIFAR-100, ResNet-110").verdict == "contradicted"


def test_the_non_zero_ratio_is_compared_between_nets_and_with_one_half(store: Store, add_run: AddRun) -> None:
    for name, share in (("relu_plain", 0.14), ("relu_bn", 0.51), ("crelu_bn", 0.5)):
        look(store, add_run(f"resnet110_{name}", data="cifar100"), [1.0, 1.0, 20.0], share)
    finding = of(judge(store, NONZERO), "CIFAR-100, ResNet-110")
    assert finding.verdict == "confirmed in part"
    assert finding.figures[0] == "resnet110_relu_plain 0.14 (paper 0.14) < resnet110_relu_bn 0.51 (paper 0.51)"
    for name, share in (("relu_np", 0.3), ("crelu_np2", 0.5)):
        look(store, add_run(f"resnet110_{name}", data="cifar100"), [1.0, 1.0, 20.0], share)
    assert "4 of 5 comparisons measured" in of(judge(store, NONZERO), "CIFAR-100, ResNet-110").caveats
    plain = add_run("resnet110_crelu_plain", data="cifar100")
    look(store, plain, [1.0, 1.0, 20.0], 0.5)
    finding = of(judge(store, NONZERO), "CIFAR-100, ResNet-110")
    assert (finding.verdict, finding.caveats) == ("confirmed", ())
    shutil.rmtree(store.root / "records" / "analyze")
    look(store, plain, [1.0, 1.0, 20.0], 0.4)
    assert of(judge(store, NONZERO), "CIFAR-100, ResNet-110").verdict == "contradicted"


def test_a_claim_of_which_a_named_part_has_no_data_is_confirmed_in_part_alone(store: Store, add_run: AddRun) -> None:
    """Of another depth only the rows that were run are shown; the claim is of the others too."""
    look(store, add_run("resnet20_crelu_bn", data="cifar100"), [1.0, 2.0], 0.5)
    add_run("resnet20_relu_plain", top1=20.0)
    add_run("resnet20_crelu_plain", top1=10.0)
    records = Records([store])
    entries = []
    for number in (1, 2):
        table = spec.with_depth(spec.load_table(number), 20)
        entries += [Entry(table, row, runs) for row in table.rows if (runs := records.runs(table, row)).train]
    judged = findings.judge(entries)
    for claim, place, note in (
        (NONZERO, "CIFAR-100, ResNet-20", "1 of 5 comparisons measured"),
        (WITHOUT, "CIFAR-10, ResNet-20", "1 of 3 comparisons measured"),
    ):
        finding = of(judged[claim][1], place)
        assert finding.verdict == "confirmed in part"
        assert note in finding.caveats


def test_markdown_has_each_claim_its_criterion_and_what_is_not_measured(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_crelu_bn", top1=5.5)
    records, table = Records([store]), spec.load_table(2)
    entries = [Entry(table, row, records.runs(table, row)) for row in table.rows]
    text = findings.markdown(findings.judge(entries))
    assert "learning rate" not in text
    assert all(f"## {claim.title}" in text and claim.criterion in text for claim in CLAIMS)
    assert "- CIFAR-10, ResNet-110: **confirmed** (1 of 5 seeds)\n  - resnet110_crelu_bn 5.50" in text
    assert "resnet110_relu_bn 6.50 (paper 6.35) (1.00 points apart, chance makes up to 0.78)" in text
    assert "what they would differ by is assumed: 2.5% of the error" in text
    assert "- **not yet measured**" in text
    shutil.rmtree(store.root)
    add_run("resnet110_relu_bn", top1=6.5)
    add_run("resnet110_crelu_bn", top1=5.5, tries=halved(0.05))
    records = Records([store])
    text = findings.markdown(findings.judge([Entry(table, row, records.runs(table, row)) for row in table.rows]))
    assert "**confirmed** (resnet110_crelu_bn at half of resnet110_relu_bn's learning rate; 1 of 5 seeds)" in text


def test_what_did_not_train_is_not_looked_into(store: Store, add_run: AddRun) -> None:
    """Its weights are the initial ones."""
    look(store, add_run("resnet110_relu_plain", "cifar100", top1=None), [1.0] * 36 + [20.0] * 18)
    assert of(judge(store, LATE), "CIFAR-100, ResNet-110").verdict == "not yet measured"


def test_seeds_that_did_not_train_are_told(store: Store, add_run: AddRun) -> None:
    for seed in range(5):
        add_run("resnet110_relu_bn", seed=seed, top1=6.5 + seed / 100)
        add_run("resnet110_crelu_bn", seed=seed, top1=None if seed < 2 else 5.5 + seed / 100)
    assert of(judge(store, WITH), "CIFAR-10, ResNet-110").caveats == (
        "resnet110_crelu_bn: 2 of 5 seeds did not train, which the median leaves out",
    )


def test_nets_of_other_images_are_not_held_against_each_other(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_relu_bn", top1=6.5)
    train = add_run("resnet110_crelu_bn", top1=5.5)["train"]
    (store.root / "records" / "train" / f"resnet110_crelu_bn-{train.key}.json").unlink()
    part = {**train.inputs, "data": {**train.inputs["data"], "sha256": "1" * 64}}
    store.put("train", part, train.result, {}, {})
    assert of(judge(store, WITH), "CIFAR-10, ResNet-110").verdict == "not yet measured"


def test_one_seed_is_taken_to_vary_as_the_seeds_of_the_other_do(store: Store, add_run: AddRun) -> None:
    """By hand: of 7.50 %, one seed on 10,000 images, the standard error is sqrt(0.2634^2 + (s * 7.5)^2)."""
    nets = {}
    for model, errors in (("resnet110_crelu_bn", [5.0, 6.0, 7.0]), ("resnet110_relu_bn", [7.5])):
        for seed, error in enumerate(errors):
            add_run(model, seed=seed, top1=error)
        table = spec.load_table(2)
        row = next(row for row in table.rows if (row.model, row.data) == (model, "cifar10"))
        nets[model] = Entry(table, row, Records([store]).runs(table, row))
    values, alone = nets["resnet110_crelu_bn"], nets["resnet110_relu_bn"]
    assert findings.median_error(alone, "last", "top1")[1] == pytest.approx(math.hypot(0.26339, 0.025 * 7.5), rel=1e-4)
    part = findings.compare_errors(values, alone, "last")
    of_three, of_one = 1.2533 / math.sqrt(3), math.hypot(0.26339, 1 / 6 * 7.5)
    spread = math.hypot(of_three, of_one)
    freedom = spread**4 / (of_three**4 / 2)
    assert part.margin == f"1.50 points apart, chance makes up to {findings._sure(freedom) * spread:.2f}"
    assert part.holds is None
