"""What the page says first, in words."""

from collections.abc import Callable
from typing import Any

from suite.report import choices, plots
from suite.report.answer import Answer, answers
from suite.report.entries import Entry
from suite.report.runs import Records
from suite.results.store import Store
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]


def said(store: Store) -> list[Answer]:
    records, table = Records([store]), spec.load_table(2)
    return answers([Entry(table, row, records.runs(table, row)) for row in table.rows])


def test_without_records_nothing_is_said(store: Store) -> None:
    assert said(store) == []


def test_the_least_error_is_named_with_its_cost_and_how_sure_it_is(store: Store, add_run: AddRun) -> None:
    add_run(top1=15.37, epochs=10, samples=(0.010,) * 3)
    add_run("resnet110_crelu_bn", top1=14.16, epochs=10, samples=(0.021,) * 3)
    first, files = said(store)
    assert first.where == "On CIFAR-10 with ResNet-110"
    assert first.main == "CReLU + BatchNorm has the lowest error, 14.2 %"
    assert first.rest == "1.2 points less than ReLU + BatchNorm, at 2.1 times its latency (cpu, batch 8)"
    assert first.sure.startswith("Too close to tell: 1.21 points apart, chance makes up to 1.4")
    assert first.sure.endswith("(10 of 164 epochs, 1 of 5 seeds)")
    assert files.main == (
        "2 of 2 exported networks answer in ONNX Runtime as they do in PyTorch, on 10,000 images each"
    )


def test_a_clear_difference_is_called_more_than_chance(store: Store, add_run: AddRun) -> None:
    for seed in range(5):
        add_run(seed=seed, top1=6.5 + seed / 100)
        add_run("resnet110_crelu_bn", seed=seed, top1=5.5 + seed / 100)
    assert said(store)[0].sure == "More than chance: 1.00 points apart, chance makes up to 0.03"


def test_a_difference_of_nets_trained_at_different_learning_rates_says_so(store: Store, add_run: AddRun) -> None:
    for seed in range(5):
        add_run(seed=seed, top1=6.5)
        add_run("resnet110_crelu_plain", seed=seed, top1=5.5, tries=[{"learning_rate": 0.025, "outcome": "trained"}])
    rates = "CReLU + Plain at a quarter of ReLU + BatchNorm's learning rate"
    assert said(store)[0].sure == f"More than chance: 1.00 points apart, chance makes up to 0.00; but {rates}"


def test_only_runs_of_one_length_are_compared(store: Store, add_run: AddRun) -> None:
    add_run(top1=6.5)
    add_run("resnet110_crelu_bn", top1=1.0, epochs=10)
    assert said(store)[0].main == "ReLU + BatchNorm errs on 6.5 %"


def test_of_quick_runs_nothing_but_latency_is_said(store: Store, add_run: AddRun) -> None:
    add_run(top1=99.0, max_steps=4, samples=(0.010,) * 3)
    add_run("resnet110_crelu_bn", top1=98.0, max_steps=4, samples=(0.017,) * 3)
    quick, files = said(store)
    assert quick.main == "CReLU + BatchNorm takes 1.7 times the latency of ReLU + BatchNorm"
    add_run("resnet110_crelu_bn", data="cifar100", top1=99.0, max_steps=4, samples=(0.018,) * 3)
    assert said(store)[0] == quick, "there is nothing to compare it with on CIFAR-100"
    assert quick.sure == "Quick runs only, whose errors mean nothing and are not shown"
    assert "99" not in str((quick, files))
    assert "98" not in str((quick, files))


def test_a_file_that_is_not_its_network_is_counted(store: Store, add_run: AddRun) -> None:
    add_run(passed=False)
    assert said(store)[-1].main.startswith("0 of 1 exported networks")


def test_int8_is_held_against_float32(store: Store, add_run: AddRun) -> None:
    add_run(forms=("fp32", "int8"))
    assert said(store)[-1].rest == "int8 takes 1.00 to 1.00 of the time at batch 8"


def test_a_ratio_of_an_unstable_latency_says_so_in_every_sentence(store: Store, add_run: AddRun) -> None:
    unstable = (0.010, 0.010, 0.020, 0.020)
    add_run(top1=15.0, epochs=10, samples=(0.010,) * 4, forms=("fp32", "int8"))
    add_run("resnet110_crelu_bn", top1=10.0, epochs=10, samples=unstable, forms=("fp32", "int8"))
    first, files = said(store)
    assert first.rest.endswith("times its latency (cpu, batch 8) (unstable timing)")
    assert files.rest.startswith("int8 takes 1.00 to 1.00 of the time at batch 8 (unstable timing in part)")


def test_a_ratio_of_quick_runs_says_that_a_latency_is_unstable(store: Store, add_run: AddRun) -> None:
    add_run(max_steps=4, samples=(0.010, 0.010, 0.020, 0.020))
    add_run("resnet110_crelu_bn", max_steps=4, samples=(0.017,) * 4)
    assert said(store)[0].main.endswith("times the latency of ReLU + BatchNorm (unstable timing)")


def test_nets_of_another_recipe_are_answered_for_apart(store: Store, add_run: AddRun) -> None:
    """Table 3's networks on CIFAR-100 have a weight decay of their own."""
    for model, top1 in (("resnet110_relu_bn", 27.46), ("resnet110_w32_relu_bn", 27.33)):
        add_run(model, "cifar100", top1=top1)
    for model, top1 in (("resnet110_w32_relu_bn", 22.50), ("resnet110_w24_crelu_bn", 22.06)):
        add_run(model, "cifar100", top1=top1, weight_decay=5e-4)
    records, tables = Records([store]), [spec.load_table(number) for number in (2, 3)]
    entries = [Entry(table, row, records.runs(table, row)) for table in tables for row in table.rows]
    usual, special, _ = answers(entries)
    assert usual.where == "On CIFAR-100 with ResNet-110"
    assert usual.main == "ReLU + BatchNorm, 32 filters has the lowest error, 27.3 %"
    assert special.where == "On CIFAR-100 with ResNet-110 with weight decay 0.0005"
    assert special.main == "CReLU + BatchNorm, 24 filters has the lowest error, 22.1 %"
    assert special.rest.startswith("0.4 points less than ReLU + BatchNorm, 32 filters")
    shown = choices.tables(entries)
    assert [list(shown), shown["choices-cifar100-resnet110-weight-decay-0-0005"].title] == [
        ["choices-cifar100-resnet110", "choices-cifar100-resnet110-weight-decay-0-0005"],
        "CIFAR-100, ResNet-110, weight decay 0.0005",
    ]
    assert [plots._by_data(entries)[0][1][number].name for number in (2, 3)] == [
        "resnet110_w32_relu_bn (weight decay 0.0005)",
        "resnet110_w24_crelu_bn (weight decay 0.0005)",
    ]


def test_the_net_beside_which_others_stand_is_not_one_whose_name_ends_alike(store: Store, add_run: AddRun) -> None:
    add_run("resnet110_crelu_np2", top1=5.0)
    add_run("resnet110_crelu_bn", top1=5.5)
    add_run("resnet110_relu_bn", top1=6.5)
    assert said(store)[0].rest.startswith("1.5 points less than ReLU + BatchNorm,")


def test_of_several_machines_one_is_chosen_and_named(store: Store, add_run: AddRun) -> None:
    for machine, seconds in (("B", 0.04), ("A", 0.02)):
        add_run("resnet110_relu_bn", top1=6.5, machine=machine, samples=(0.02,) * 3)
        add_run("resnet110_crelu_bn", top1=5.5, machine=machine, samples=(seconds,) * 3)
    assert said(store)[0].rest.endswith("at 1.0 times its latency (cpu, batch 8, on A)")


def test_a_range_of_ratios_is_of_one_machine(store: Store, add_run: AddRun) -> None:
    for machine, seconds, places in (("A", 0.09, ("cifar10",)), ("B", 0.03, ("cifar10", "cifar100"))):
        for data in places:
            quick = {"data": data, "machine": machine, "max_steps": 4}
            add_run("resnet110_relu_bn", samples=(0.02,) * 3, **quick)
            add_run("resnet110_crelu_bn", samples=(seconds,) * 3, **quick)
    answer = said(store)[0]
    assert answer.main == "CReLU + BatchNorm takes 1.5 times the latency of ReLU + BatchNorm"
    assert answer.where == "On CIFAR-10 with ResNet-110; CIFAR-100 with ResNet-110"
