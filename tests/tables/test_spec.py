import dataclasses
import itertools
from importlib import resources
from typing import Any

import pytest
import timm

import models  # noqa: F401 - registers the networks with timm
from suite.errors import InputError
from suite.tables import spec

TEXT = (resources.files("suite") / "tables" / "table2.toml").read_text("utf-8")


def test_every_row_of_every_table_names_a_registered_model() -> None:
    for number in spec.NUMBERS:
        for row in spec.load_table(number).rows:
            assert timm.is_model(row.model), row


def test_tables_have_as_many_rows_as_in_the_paper() -> None:
    assert {number: len(spec.load_table(number).rows) for number in spec.NUMBERS} == {1: 6, 2: 20, 3: 4, 4: 18}


@pytest.mark.parametrize(
    ("number", "model", "data", "paper"),
    [
        (1, "resnet110_relu_np", "cifar100", {"mean": 28.68, "std": 33.58, "nonzero": 0.21}),
        (2, "resnet110_relu_plain", "cifar10", {"top1": 7.78}),
        (2, "resnet110_w32_relu_bn", "cifar100", {"top1": 27.33}),
        (2, "resnet110_crelu_bn", "cifar100", {"top1": 25.89}),
        (3, "resnet110_w24_crelu_bn", "cifar100", {"top1": 22.06}),
        (
            4,
            "resnet34_relu_plain",
            "imagenet",
            {"top1": 29.92, "top5": 10.84, "top1_10crop": 27.15, "top5_10crop": 9.16},
        ),
        (4, "resnet101_crelu_bn", "imagenet", {"top1": 21.89, "top5": 5.92, "top1_10crop": 20.63, "top5_10crop": 5.35}),
    ],
)
def test_paper_figures_stand_beside_their_row(number: int, model: str, data: str, paper: dict[str, float]) -> None:
    rows = [row for row in spec.load_table(number).rows if (row.model, row.data) == (model, data)]
    assert [dict(row.paper) for row in rows] == [paper]


def test_cifar_learning_rate_falls_after_epochs_80_and_121() -> None:
    recipe = spec.load_table(2).recipe
    rates = {epoch: recipe.learning_rate_at(epoch) for epoch in (1, 80, 81, 121, 122, 164)}
    assert rates == pytest.approx({1: 0.1, 80: 0.1, 81: 0.01, 121: 0.01, 122: 0.001, 164: 0.001})


def test_imagenet_learning_rate_falls_every_30_epochs_of_150() -> None:
    recipe = spec.load_table(4).recipe
    assert recipe.epochs == 150
    for epoch in range(1, 151):
        assert recipe.learning_rate_at(epoch) == pytest.approx(0.1 * 0.1 ** ((epoch - 1) // 30))


def test_table_3_raises_the_weight_decay_on_cifar100_only() -> None:
    table = spec.load_table(3)
    decay = {(row.model, row.data): spec.recipe_for(table, row).weight_decay for row in table.rows}
    assert decay == {
        ("resnet110_relu_bn", "cifar10"): 1e-4,
        ("resnet110_w12_crelu_bn", "cifar10"): 1e-4,
        ("resnet110_w32_relu_bn", "cifar100"): 5e-4,
        ("resnet110_w24_crelu_bn", "cifar100"): 5e-4,
    }


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(164, (81, 122)), (82, (41, 61)), (10, (6, 8)), (5, (3, 5)), (3, (2, 3)), (2, (2,))]
)
def test_fewer_epochs_move_the_milestones_in_proportion(epochs: int, milestones: tuple[int, ...]) -> None:
    recipe = spec.load_table(2).recipe.for_epochs(epochs)
    # Before a milestone lie 80/164 and 121/164 of the epochs.
    assert recipe.epochs == epochs
    assert recipe.milestones == milestones


@pytest.mark.parametrize("number", spec.NUMBERS)
def test_from_10_epochs_on_a_milestone_keeps_its_share_to_the_nearest_epoch(number: int) -> None:
    recipe = spec.load_table(number).recipe
    for epochs in range(10, 201):
        # As trainings of 10 epochs were published; another formula would give them other keys.
        scaled = {1 + round((milestone - 1) * epochs / recipe.epochs) for milestone in recipe.milestones}
        assert recipe.for_epochs(epochs).milestones == tuple(sorted(scaled)), epochs


@pytest.mark.parametrize("number", spec.NUMBERS)
def test_a_few_epochs_begin_at_the_initial_rate_and_drop_by_a_tenth_at_a_time(number: int) -> None:
    recipe = spec.load_table(number).recipe
    for epochs in range(1, 10):
        short = recipe.for_epochs(epochs)
        rates = [short.learning_rate_at(epoch) for epoch in range(1, epochs + 1)]
        assert rates[0] == recipe.learning_rate == 0.1
        for before, after in itertools.pairwise(rates):
            assert after == pytest.approx(before) or after == pytest.approx(before / 10)


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [(1, [0.1]), (2, [0.1, 0.01]), (3, [0.1, 0.01, 1e-3]), (4, [0.1, 0.01, 1e-3, 1e-4])],
)
def test_drops_of_imagenet_s_schedule_that_meet_in_one_epoch_are_one(epochs: int, rates: list[float]) -> None:
    short = spec.load_table(4).recipe.for_epochs(epochs)
    assert [short.learning_rate_at(epoch) for epoch in range(1, epochs + 1)] == pytest.approx(rates)


def test_a_table_that_has_a_drop_before_its_first_epoch_keeps_it() -> None:
    recipe = dataclasses.replace(spec.load_table(2).recipe, epochs=10, milestones=(1, 6))
    assert recipe.for_epochs(10) == recipe
    assert recipe.for_epochs(1).milestones == (1, 2)


def test_quick_profile_changes_steps_and_trains_at_the_size_of_the_embedded_images() -> None:
    for number in spec.DEPLOYED:
        table = spec.load_table(number)
        quick = spec.recipe_for(table, table.rows[0], "quick")
        assert quick.max_steps is not None
        side = {"imagenet": 64}.get(table.rows[0].data, 32)  # of the embedded stand-in
        assert (quick.train_size, quick.test_size) == (side, side)


def test_asking_for_epochs_leaves_nothing_of_the_quick_profile() -> None:
    table = spec.load_table(2)
    asked = spec.recipe_for(table, table.rows[0], "quick", epochs=3)
    assert asked == spec.recipe_for(table, table.rows[0], "paper", epochs=3)
    assert (asked.max_steps, asked.max_test_images, asked.batch_size) == (None, None, 128)


def test_steps_limit_either_profile() -> None:
    table = spec.load_table(2)
    assert spec.recipe_for(table, table.rows[0], "quick", steps=2).max_steps == 2
    assert spec.recipe_for(table, table.rows[0], "paper", steps=2).max_steps == 2


def test_another_depth_renames_all_models_and_the_title_says_so() -> None:
    table = spec.with_depth(spec.load_table(2), 20)
    assert {row.model.split("_")[0] for row in table.rows} == {"resnet20"}
    assert all(timm.is_model(row.model) for row in table.rows)
    assert "run with ResNet-20" in table.title
    assert "figures are of ResNet-110" in table.title
    assert spec.with_depth(spec.load_table(2), 110) == spec.load_table(2), "which says nothing of other nets"


def test_depth_is_refused_where_rows_differ_in_it() -> None:
    with pytest.raises(InputError, match=r"^--depth is only for tables 1, 2 and 3; the rows of table 4 differ"):
        spec.with_depth(spec.load_table(4), 20)


def test_rows_are_chosen_by_model_or_by_model_and_data() -> None:
    table = spec.load_table(2)
    assert len(spec.with_rows(table, ["*_crelu_*"]).rows) == 8
    chosen = spec.with_rows(table, ["resnet110_relu_bn@cifar100", "resnet110_crelu_bn"]).rows
    assert [(row.model, row.data) for row in chosen] == [
        ("resnet110_crelu_bn", "cifar10"),
        ("resnet110_relu_bn", "cifar100"),
        ("resnet110_crelu_bn", "cifar100"),
    ]


def test_a_glob_without_a_match_is_named_with_the_models_there_are() -> None:
    with pytest.raises(InputError, match=r"'resnet9\*' matches no row of table 2.*resnet110_relu_plain"):
        spec.with_rows(spec.load_table(2), ["resnet110_*", "resnet9*"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("number = 2", "number = 2\nnumbr = 3", "t.toml: unknown key 'numbr'; use number, title"),
        ("epochs = 164", "epoch = 164", "t.toml: recipe: unknown key 'epoch'"),
        ("epochs = 164\n", "", "t.toml: recipe: key 'epochs' is missing"),
        ("epochs = 164", 'epochs = "164"', "t.toml: recipe: epochs: must be of type int, not '164'"),
        ("epochs = 164", "epochs = true", "t.toml: recipe: epochs: must be of type int, not True"),
        ("epochs = 164", "epochs = 0", "t.toml: recipe: epochs must be at least 1, not 0"),
        ("learning_rate = 0.1", "learning_rate = nan", "t.toml: recipe: learning_rate: must be finite, not nan"),
        ("learning_rate = 0.1", "learning_rate = -1", "t.toml: recipe: learning_rate must be positive"),
        ("milestones = [81, 122]", "milestones = [122, 81]", "t.toml: recipe: milestones must rise"),
        (
            'augment = "cifar"',
            'augment = "cutout"',
            "recipe: augment: 'cutout' is not valid; use 'cifar' or 'imagenet'",
        ),
        ("max_steps = 4", "max_stps = 4", "t.toml: quick: unknown key 'max_stps'"),
        ('metrics = ["top1"]', 'metrics = ["top2"]', "unknown metric 'top2'; use top1"),
        (
            "paper = { top1 = 7.78 }",
            "paper = { top5 = 7.78 }",
            r"t.toml: rows\[0\]: paper: unknown key 'top5'; use top1",
        ),
        ("paper = { top1 = 7.78 }", "paper = 7.78", r"t.toml: rows\[0\]: paper: must be a table of keys"),
        ('data = "cifar10"', 'data = "mnist"', r"rows\[0\]: data: 'mnist' is not a data set; use cifar10, cifar100"),
        (
            "resnet110_relu_plain",
            "resnet56_relu_plain",
            r"rows\[0\]: model 'resnet56_relu_plain' is not of the table's depth",
        ),
        ('headings = ["Norm", ', "headings = [", r"rows\[0\]: heading has 3 entries, headings 2"),
        ("number = 2", "number = [", "t.toml: not valid TOML"),
    ],
)
def test_an_error_in_a_table_names_file_place_and_what_to_do(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(InputError, match=message):
        spec.parse_table(TEXT.replace(old, new, 1), "t.toml")


@pytest.mark.parametrize("number", [0, 5])
def test_an_unknown_table_is_refused_with_those_there_are(number: int) -> None:
    with pytest.raises(InputError, match=r"no such table; use 1, 2, 3 or 4$"):
        spec.load_table(number)


def test_specifications_cannot_be_changed() -> None:
    recipe: Any = spec.load_table(2).recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1
