"""Figures 2 and 3 from the records that there are, and from initial weights."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import models  # noqa: F401 - registers the networks with timm
from suite import progress
from suite.data.batches import Batches
from suite.data.sets import load
from suite.errors import InputError
from suite.report import figures
from suite.results.store import Store
from suite.tables import spec
from suite.training import train
from suite.training.step import Engine


def test_untrained_curves_say_so_and_have_a_value_for_each_block(tmp_path: Path) -> None:
    found = figures.curves(2, tmp_path, depth=20, images=20)
    assert [curve.model for curve in found] == [
        f"resnet20_{act}_{norm}" for act in ("relu", "crelu") for norm in ("plain", "bn")
    ]
    assert all(len(curve.values) == 9 and min(curve.values) > 0 for curve in found)
    assert all("NOT TRAINED" in curve.origin for curve in found)
    text = figures.render(2, found, "github")
    assert text.count("NOT TRAINED") == 1
    assert "- each network: initial weights, NOT TRAINED: no run in the results folder; measured on 20" in text
    found[1] = dataclasses.replace(found[1], origin="a run")
    foot = figures.render(2, found, "github").splitlines()[-2:]
    assert foot[0].startswith("- resnet20_relu_plain, resnet20_crelu_plain, resnet20_crelu_bn: initial weights, NOT")
    assert foot[1] == "- resnet20_relu_bn: a run"


def test_each_network_and_its_images_are_told_while_they_are_measured(
    suite: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = suite("figure", "2", "--depth", "20", "--images", "2")
    assert code == 0
    said, begun, done, *others = err.splitlines()
    assert said.startswith("no trained weights of these networks in results/local; initial weights are taken. `suite ")
    assert said.endswith("run --table 1 --profile paper --depth 20 --data cifar100=PATH` trains them")
    assert begun == "resnet20_relu_plain: initial weights ..."
    assert done.startswith("[1/4] resnet20_relu_plain: done, ")
    assert len(others) == 6
    steps: list[tuple[int, int, str]] = []

    class Watched(progress.Silent):
        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[progress.Steps]:
            yield lambda *step: steps.append(step)

    figures.curves(2, tmp_path, depth=20, images=2, shown=Watched(4))
    assert steps == [(2, 2, "images")] * 4


def test_a_figure_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, values = tuple(f"layer1.{number}" for number in range(54)), (0.12345,) * 54
    found = [figures.Curve(name, blocks, values, "a run " * 30) for name in figures.models_of_figure(2, 110)]
    wide = figures.render(2, found, "github")
    assert "| resnet110_relu_plain |" in wide
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = figures.render(2, found, "github").splitlines()
    assert max(map(len, lines)) <= 80
    (headings,) = [line for line in lines if "block " in line and line.startswith("|")]
    assert [name.strip() for name in headings.split("|")[3:-1]] == ["relu_plain", "relu_bn", "crelu_plain", "crelu_bn"]
    assert figures.render(2, found, "csv").startswith("number,block,resnet110_relu_plain,")


def test_the_longest_run_of_a_network_is_taken(tmp_path: Path) -> None:
    store, dataset = Store(tmp_path), load("digits10")
    for steps in (2, 1):
        recipe = dataclasses.replace(
            spec.load_table(2).recipe, epochs=1, batch_size=16, max_steps=steps, max_test_images=10
        )
        inputs = {"model": "resnet20_relu_bn", "data": dataset.fingerprint, "recipe": dataclasses.asdict(recipe)}
        with store.workspace() as folder:
            job = train.Job("resnet20_relu_bn", Batches(dataset, recipe, torch.device("cpu")), 0, folder)
            result = train.train(job, Engine("float32", "never"))
            store.put("train", inputs | {"seed": 0}, result.result, {}, {}, folder)
    trained = {curve.model: curve for curve in figures.curves(2, tmp_path, depth=20, images=20)}["resnet20_relu_bn"]
    assert trained.origin == ("shortened run of 2 steps on digits10, seed 0; measured on 20 test images of digits10")
    untrained = figures.curves(2, tmp_path / "none", depth=20, images=20)[1]
    assert trained.values != untrained.values


def test_a_curve_on_images_of_another_data_set_says_so_in_every_form() -> None:
    names, values = ("layer1.0",), (0.5,)
    label = "on digits10, trained on cifar10"
    found = [figures.Curve("one", names, values, "a run", label), figures.Curve("other", names, values, "a run")]
    for form in ("github", "latex", "csv"):
        assert figures.render(2, found, form).count(f"one ({label})") >= 1
    first, second = json.loads(figures.render(2, found, "json"))["curves"]
    assert first["label"] == label
    assert "label" not in second


def test_figure_3_has_the_convolutions_off_the_shortcuts(tmp_path: Path) -> None:
    relu, crelu = figures.curves(3, tmp_path)
    assert len(relu.values) == len(crelu.values) == 33
    assert all(0 < value <= 1 for value in relu.values + crelu.values)
    rows = list(csv.reader(io.StringIO(figures.render(3, [relu, crelu], "csv"))))
    assert rows[0] == ["number", "convolution", "resnet34_relu_np2", "resnet34_crelu_np2"]
    assert [float(row[2]) for row in rows[1:]] == list(relu.values)
    content = json.loads(figures.render(3, [relu, crelu], "json"))
    assert content["curves"][1]["values"] == list(crelu.values)


def test_a_depth_for_figure_3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="34-layer"):
        figures.curves(3, tmp_path, depth=20)


@pytest.mark.parametrize("form", ["github", "latex", "csv", "json"])
def test_normprop_s_promise_is_printed_layer_by_layer(form: str) -> None:
    found, remarks = figures.promise()
    text = figures.render(figures.PROMISE, found, form, remarks)
    assert "ResNet-20, variance" in text
    assert [len(curve.values) for curve in found] == [12, 12, 19, 19]
    if form == "csv":
        return
    assert "as printed, 1/(2 pi), it were 0.1592" in text
    if form == "latex":
        assert "$" not in text
        assert "W\\textasciicircum{}T" in text
        assert "\n- " not in text
