"""Published weights: their index, and what timm and the commands make of their names."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import models.published
from suite.inference import names
from suite.results.store import Store
from suite.results.weights import find_weights

ROOT = Path(__file__).parents[2]
WEIGHTS = json.loads(models.published.INDEX.read_text("utf-8"))["weights"]
Suite = Callable[..., tuple[int, str, str]]


def test_the_index_is_what_the_records_say(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert suite("list", "weights", "--format", "json")[1] == models.published.INDEX.read_text("utf-8")
    out = suite("list", "weights")[1]
    assert all(each["name"] in out and str(each["error"]) in out for each in WEIGHTS)
    assert f"\n\n{out}\n" in (models.published.FOLDER / "README.md").read_text("utf-8")
    monkeypatch.chdir(ROOT.parent)
    assert suite("list", "weights")[1] == out, "they lie beside the package, wherever one works"


@pytest.mark.parametrize("each", WEIGHTS, ids=lambda each: each["name"])
def test_timm_loads_published_weights_by_their_name(each: dict[str, Any]) -> None:
    file = models.published.FOLDER / each["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == each["sha256"]
    model = timm.create_model(each["name"], pretrained=True)
    assert (model.num_classes, list(model.pretrained_cfg["mean"])) == (each["num_classes"], each["mean"])
    state = load_file(file)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert each["name"] in timm.list_models("resnet*", pretrained=True, module="crelu_resnet")
    assert timm.create_model(each["name"], pretrained=True, num_classes=7).num_classes == 7


@pytest.mark.parametrize("fault", ["gone", "cut short", "a byte longer"])
def test_timm_is_given_published_weights_only_as_they_were_published(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = WEIGHTS[0]
    sound = (models.published.FOLDER / each["file"]).read_bytes()
    file = tmp_path / "model.safetensors"
    monkeypatch.setitem(models.published._digests, str(file), each["sha256"])

    def load() -> torch.nn.Module:
        return timm.create_model(each["name"], pretrained=True, pretrained_cfg_overlay={"file": str(file)})

    file.write_bytes(sound)
    assert load().num_classes == each["num_classes"]
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(sound[: len(sound) // 2] if fault == "cut short" else sound + bytes(1))
    what = "is missing" if fault == "gone" else "is not as it was published"
    with pytest.raises(RuntimeError, match=rf"^.*model\.safetensors: {what}; git checkout results/published"):
        load()


def test_timm_knows_published_weights_whose_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.json").write_text(json.dumps({"weights": [WHOLE]}))
    monkeypatch.setattr(models.published, "INDEX", tmp_path / "weights.json")
    found = models.published.with_weights({"resnet20_relu_bn": {"num_classes": 10}})
    assert list(found["resnet20_relu_bn"].tags) == ["", "x"]
    with pytest.raises(RuntimeError, match="is missing; git checkout results/published restores it"):
        models.published.require_as_published(found["resnet20_relu_bn"].cfgs["x"].file)


def test_a_name_without_a_tag_is_what_it_was() -> None:
    assert "." not in "".join(timm.list_models(module="crelu_resnet"))
    assert timm.create_model("resnet20_crelu_bn").num_classes == 10
    with pytest.raises(RuntimeError, match="No pretrained weights exist for resnet20_crelu_bn"):
        timm.create_model("resnet20_crelu_bn", pretrained=True)


def test_commands_take_published_weights_by_their_name(suite: Suite, tmp_path: Path) -> None:
    name = "resnet20_relu_bn.cifar100_10ep"
    code, out, _ = suite("export", name, str(tmp_path / "net.onnx"))
    assert code == 0
    assert "weights             of a run" in out
    files = {each["name"]: (models.published.FOLDER / each["file"], each["sha256"]) for each in WEIGHTS}
    assert names.published() == files
    folder = files[name][0].parent
    assert suite("parity", str(tmp_path / "net.onnx"), "--against", name)[0] == 0
    assert suite("parity", name, "--against", str(folder), "--tolerance", "1e-9")[0] == 0
    code, _, err = suite("export", "resnet20_relu_bn.cifar100_11ep", str(tmp_path / "other.onnx"))
    assert code == 2
    assert "neither a file or folder that is there nor a model" in err
    of_it = "published are resnet20_relu_bn.cifar100_10ep, resnet20_relu_bn.cifar10_10ep\n"
    assert err.endswith(f"; resnet20_relu_bn alone has initial weights, {of_it}")
    code, _, err = suite("export", "resnet32_relu_bn.cifar10_10ep", str(tmp_path / "other.onnx"))
    assert err.endswith(f"; resnet32_relu_bn alone has initial weights, and {models.published.FOLDER} has none\n")


def test_a_file_of_published_weights_is_checked_against_them_and_no_others(suite: Suite, tmp_path: Path) -> None:
    name, few = "resnet20_relu_bn.cifar10_10ep", ("--images", "10")
    for precision in ("fp32", "int8"):
        path = str(tmp_path / f"{precision}.onnx")
        assert suite("export", name, path, "--precision", precision)[0] == 0
        code, out, _ = suite("parity", path, *few)
        assert (code, out.partition(",")[0]) == (0, "resnet20_relu_bn with a run's weights")
        for other, why in (
            ("resnet20_relu_np2.cifar10_10ep", "was made from resnet20_relu_bn, not from resnet20_relu_np2"),
            ("resnet20_relu_bn", "was made from other weights of resnet20_relu_bn than these"),
        ):
            code, out, err = suite("parity", path, "--weights", other, *few)
            assert (code, out) == (2, "")
            assert err.endswith(f"\nerror: {path}: {why}; give its own by --weights\n")


def test_weights_of_a_run_that_were_changed_since_are_not_used(suite: Suite, tmp_path: Path) -> None:
    file = next(
        models.published.FOLDER / each["file"] for each in WEIGHTS if each["name"] == "resnet20_relu_bn.cifar10_10ep"
    )
    run = tmp_path / "results" / "artifacts" / file.parent.name
    shutil.copytree(file.parent, run)
    (record,) = file.parents[2].glob(f"records/train/*-{run.name}.json")
    (tmp_path / "results" / "records" / "train").mkdir(parents=True)
    shutil.copy(record, tmp_path / "results" / "records" / "train")
    net = str(tmp_path / "net.onnx")
    assert suite("export", str(run), net)[0] == 0
    changed = bytearray((run / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (run / "model.safetensors").write_bytes(changed)
    for command in (
        ("export", str(run), str(tmp_path / "other.onnx")),
        ("parity", net, "--weights", str(run)),
        ("parity", net, "--against", str(run)),
        ("time", f"local-dir:{run}"),
        ("explain", str(run)),
    ):
        code, out, err = suite(*command)
        assert (code, out) == (2, "")
        assert err == f"error: {run}/model.safetensors: changed since it was trained; train it again\n"
    assert not (tmp_path / "other.onnx").exists()


INDEX = {"weights": [{"name": "resnet20_relu_bn.x", "file": "m/artifacts/k/model.safetensors", "sha256": "0"}]}


@pytest.mark.parametrize(
    ("index", "weights", "named"),
    [
        ("garbage", None, "is no index of weights"),
        ("[]", None, "is no index of weights"),
        ('{"weights": 3}', None, "is no index of weights"),
        ('{"weights": [{"name": "resnet20_relu_bn.x"}]}', None, "is no index of weights"),
        (json.dumps(INDEX).replace("m/", "../../"), None, "a file is outside of its folder"),
        (json.dumps(INDEX), None, "its weights are missing from"),
        (json.dumps(INDEX), b"changed", "is not as it was published"),
    ],
)
def test_damaged_published_weights_are_named_and_not_used(
    index: str, weights: bytes | None, named: str, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.json").write_text(index)
    if weights is not None:
        (tmp_path / "m" / "artifacts" / "k").mkdir(parents=True)
        (tmp_path / "m" / "artifacts" / "k" / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(names, "PUBLISHED", tmp_path)
    names.published.cache_clear()
    try:
        code, out, err = suite("export", "resnet20_relu_bn.x", str(tmp_path / "net.onnx"))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert named in err
        assert err.endswith("git checkout results/published restores it\n")
        assert not (tmp_path / "net.onnx").exists()
        assert names.published_folder("resnet18") is None  # of a name without such a tag the index is not asked
    finally:
        names.published.cache_clear()


WHOLE = INDEX["weights"][0] | {"num_classes": 10, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    "index",
    [
        "garbage",
        "[]",
        '{"weights": 3}',
        '{"weights": [{"name": "resnet20_relu_bn.x"}]}',
        *(
            json.dumps({"weights": [WHOLE | wrong]})
            for wrong in ({"name": 3}, {"file": 3}, {"num_classes": "ten"}, {"mean": 0.5}, {"std": ["a", "b", "c"]})
        ),
    ],
)
def test_timm_has_its_models_beside_a_damaged_index(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.json").write_text(index)
    monkeypatch.setattr(models.published, "INDEX", tmp_path / "weights.json")
    with pytest.warns(UserWarning, match="is no index of weights"):
        found = models.published.with_weights({"resnet20_relu_bn": {"num_classes": 10}})
    assert list(found["resnet20_relu_bn"].tags) == [""]


def test_a_list_of_weights_has_only_whole_trainings(store: Store, add_run: Callable[..., Any], suite: Suite) -> None:
    """Of what was trained for a few steps, or not at all, there is nothing to publish."""

    def with_weights(**changes: Any) -> None:
        record = add_run("resnet20_relu_bn", **changes)["train"]
        workspace = store.root / "made"
        workspace.mkdir()
        (workspace / "model.safetensors").write_bytes(b"weights")
        cfg = {"num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}
        (workspace / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
        recipe = {**record.inputs["recipe"], "batch_size": 64}  # another record than that without files
        store.put("train", {**record.inputs, "recipe": recipe}, record.result, {}, {}, workspace)

    with_weights(epochs=10, top1=15.0)
    with_weights(epochs=10, top1=14.0, seed=2)
    with_weights(epochs=10, top1=90.0, max_steps=3)
    with_weights(epochs=10, top1=80.0, max_steps=3000)  # some epochs, but not those that the name says
    with_weights(epochs=10, top1=13.0, weight_decay=5e-4)
    with_weights(epochs=164, top1=None)
    found = find_weights(store.root.parent)
    assert {each["name"]: each["error"] for each in found} == {
        "resnet20_relu_bn.cifar10_10ep": 15.0,
        "resnet20_relu_bn.cifar10_10ep_seed2": 14.0,
        "resnet20_relu_bn.cifar10_10ep_wd0.0005": 13.0,
    }
    assert (store.root.parent / found[0]["file"]).read_bytes() == b"weights"
    (store.root.parent / found[0]["file"]).parent.joinpath("config.json").write_text("{}")
    code, _, err = suite("list", "weights", "--results", str(store.root.parent))
    assert code == 2
    assert "config.json: is no configuration of a model" in err
    empty = store.root.parent / "empty"
    (empty / "a" / "records").mkdir(parents=True)
    for folder, why in (
        (store.root, "is a results folder; give the folder that holds it"),
        (empty / "a" / "records", "holds no results folders"),
        (empty, "hold no weights"),
    ):
        code, _, err = suite("list", "weights", "--results", str(folder))
        assert code == 2
        assert why in err
    assert suite("list", "models", "--results", str(store.root)) == (
        2,
        "",
        "error: --results is only for list weights\n",
    )
