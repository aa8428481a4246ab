"""Tables of a user's own: what is read of a file, what is refused in one line, what goes into keys, and claims."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from suite import api
from suite.errors import InputError
from suite.grid import own as models_of
from suite.grid.plan import plan
from suite.grid.run_options import RunOptions
from suite.report import own_claims
from suite.report.entries import Entry
from suite.report.runs import CHANGED, Records
from suite.results.store import Store
from suite.tables import modules, own, spec

Run = Callable[..., tuple[int, str, str]]
EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = """
title = "Mine"
claims = ["wide < tiny", { left = "wide", right = "resnet18", text = "Wide is best." }]

[recipe]
epochs = 2
batch_size = 50
learning_rate = 0.05
milestones = []
momentum = 0.9
weight_decay = 1e-4
augment = "cifar"
train_size = 32
test_size = 32

[[rows]]
name = "tiny"
model = "lcnet_050"
data = "digits10"

[[rows]]
name = "wide"
model = "lcnet_050"
arguments = { act_layer = "relu" }
data = "digits10"

[[rows]]
model = "resnet18"
data = "digits10"
"""
MODULE = """
from timm.models import register_model
from torch import nn

@register_model
def {name}(pretrained=False, num_classes=10, **_):
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(4, num_classes))
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write the table with some of its text replaced; returns the file."""

    def write(*changes: tuple[str, str]) -> Path:
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def test_a_table_of_ones_own_is_read_with_what_it_need_not_say(written: Callable[..., Path]) -> None:
    table = api.load_table(written())
    assert isinstance(table, own.OwnTable)
    assert (table.own, table.label, table.metrics, table.headings) == (True, "mine", ("top1",), ("Network",))
    assert [row.heading for row in table.rows] == [("tiny",), ("wide",), ("resnet18",)]
    assert table.claims[0] == own.Claim("wide", "tiny", "top1")
    assert api.load_table(2) == spec.load_table(2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "lcnet_050",
            "lcnet_05O",
            r"mine\.toml: rows\[0\]: model: 'lcnet_05O' is not a model .*; did you mean .*lcnet_050",
        ),
        ("title =", "titel =", "mine.toml: unknown key 'titel'; use title"),
        ('title = "Mine"\n', "", "mine.toml: key 'title' is missing"),
        ("epochs = 2", "epoch = 2", "mine.toml: recipe: unknown key 'epoch'"),
        ('data = "digits10"', 'data = "mnist"', r"rows\[0\]: data: 'mnist' is not a data set; use cifar10"),
        ('name = "wide"', 'name = "tiny"', "rows: 2 are called 'tiny' on digits10"),
        ("wide < tiny", "wide > tiny", r"claims\[0\]: 'wide > tiny' is not a claim; write 'LEFT < RIGHT'"),
        ("wide < tiny", "wide < tine", r"'tine'; use tiny, wide or resnet18; .*correct the row's model"),
        ("wide < tiny", "wide < wide", r"claims\[0\]: both sides are the row 'wide'"),
        ("text =", "txt =", r"claims\[1\]: unknown key 'txt'; use left, right, metric or text"),
        ("text =", 'metric = "top5", text =', r"claims\[1\]: metric: 'top5' is not a metric of this table; use top1$"),
        (
            "act_layer =",
            "pretrained =",
            r"rows\[1\]: arguments: 'pretrained' is not allowed; use the model's own arguments",
        ),
        ('"relu" }', "nan }", r"rows\[1\]: arguments: 'act_layer' must be a number, a text"),
        ("[recipe]", 'metrics = ["mean"]\n[recipe]', "metrics: unknown metric 'mean'; use top1, top5"),
        ("[recipe]", 'metrics = ["top1_10crop"]\n[recipe]', "the metric top1_10crop needs ten_crop = true"),
        ("[recipe]", "[data.cifar10]\n[recipe]", "data.cifar10: is a data set of the suite"),
        ("[recipe]", "[data.mine]\nstd = [0.2, 0.0, 0.2]\n[recipe]", "data: 'mine': std: must be three numbers"),
        ("[recipe]", "seeds = 0\n[recipe]", "mine.toml: seeds must be at least 1"),
        ("[recipe]", "[quick]\nmax_stps = 1\n[recipe]", "mine.toml: quick: unknown key 'max_stps'"),
        ("[recipe]", "[recipe", "mine.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(
    written: Callable[..., Path], suite: Run, old: str, new: str, message: str
) -> None:
    path = written((old, new))
    with pytest.raises(InputError, match=message):
        api.load_table(path)
    code, out, err = suite("show", "--table", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--table", "gone.toml"], "gone.toml: No such file"),
        (["run", "--table", "7"], "--table 7: no such table; use 1, 2, 3, 4 or a TOML file"),
        (["show", "--table", "2", "--import", "x"], "--import x: is for a table of your own"),
        (["run", "--table", "2", "--import", "x"], "--import x: is for a table of your own"),
        (["run", "--table", "TABLE", "--import", "no_such_module"], "--import no_such_module: cannot be imported"),
        (["run", "--table", "TABLE", "--import", "gone.py"], "--import gone.py: no such file"),
        (
            ["show", "--table", "TABLE", "--import", "no_such_module"],
            "no module of this name; give an importable name or the path of a .py file",
        ),
        (
            ["run", "--table", "TABLE", "--data", "flowers=x"],
            "must be NAME=PATH, where NAME is cifar10, cifar100, imagenet",
        ),
        (["run", "--table", "TABLE", "--data", "svhn=x"], "no row to run uses svhn; the rows use digits10"),
        (
            ["run", "--table", "TABLE", "--rows", "big"],
            "'big' matches no row of mine; its rows are tiny, wide, resnet18",
        ),
        (
            ["run", "--table", "TABLE", "--depth", "20"],
            "--depth is only for tables 1, 2 and 3; a table of your own has the models that it names",
        ),
        (
            ["report", "--table", "2", "--results", "."],
            "the page has all of the paper's tables; give the TOML file of a table of your own",
        ),
    ],
)
def test_what_is_wrong_with_a_command_is_one_line(
    written: Callable[..., Path], suite: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    path = written()
    monkeypatch.chdir(path.parent)
    code, out, err = suite(*(str(path) if each == "TABLE" else each for each in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [('arguments = { act_layer = "relu" }', "arguments = { num_classes = 5 }")],
            "num_classes is 5, and digits10 has 10",
        ),
        (
            [('arguments = { act_layer = "relu" }', "arguments = { depths = 5 }")],
            "row 'wide': lcnet_050 with .*depths=5.* cannot",
        ),
        (
            [('arguments = { act_layer = "relu" }', "arguments = { in_chans = 1 }")],
            "row 'wide': lcnet_050 with .*in_chans=1.* cannot",
        ),
    ],
)
def test_a_network_that_does_not_suit_its_data_is_refused_beforehand(
    written: Callable[..., Path], tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    cells = plan(RunOptions(own.load(written(*changes)), tmp_path / "results")).cells
    with pytest.raises(InputError, match=message):
        models_of.check_networks(cells)


def test_images_of_another_size_than_cifars_transforms_are_to_take_are_refused(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    table = own.load(written(("train_size = 32", "train_size = 24")))
    with pytest.raises(InputError, match="row 'tiny': digits10 has 32x32 pixels"):
        plan(RunOptions(table, tmp_path))


def test_arguments_are_in_every_key_and_rows_of_the_paper_have_none(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    stages = plan(RunOptions(own.load(written()), tmp_path)).stages
    of = {title: [s for s in stages if s.cell and s.cell.row.title == title] for title in ("tiny", "wide")}
    assert all("arguments" not in stage.inputs for stage in of["tiny"])
    assert all(stage.inputs["arguments"] == {"act_layer": "relu"} for stage in of["wide"])
    assert not {stage.key for stage in of["tiny"]} & {stage.key for stage in of["wide"]}


def test_a_folder_of_images_is_a_data_set_with_its_own_statistics(
    written: Callable[..., Path], tmp_path: Path, imagenet_folder: Callable[[Path], Path]
) -> None:
    imagenet_folder(tmp_path / "flowers")
    section = '[data.flowers]\npath = "flowers"\nmean = [0.5, 0.5, 0.5]\n[recipe]'
    path = written(("[recipe]", section), ('"digits10"', '"flowers"'), ('claims = ["wide < tiny", ', "claims = ["))
    for augment in ("cifar", "imagenet"):
        path.write_text(path.read_text().replace('augment = "cifar"', f'augment = "{augment}"'))
        cell = plan(RunOptions(own.load(path), tmp_path / "results")).cells[0]
        assert (len(cell.dataset.classes), cell.dataset.mean, cell.dataset.train.in_memory) == (
            2,
            (127.5,) * 3,
            augment == "cifar",
        )
        assert cell.dataset.fingerprint["mean"] == [127.5] * 3
    shutil.rmtree(tmp_path / "flowers")
    with pytest.raises(InputError, match="flowers: does not exist"):
        plan(
            RunOptions(
                own.load(
                    written(
                        ("[recipe]", section.replace('"flowers"', '"gone/flowers"')),
                        ('"digits10"', '"flowers"'),
                        ('claims = ["wide < tiny", ', "claims = ["),
                    )
                ),
                tmp_path,
            )
        )


def test_a_changed_module_makes_new_records_and_the_old_ones_do_not_count(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    module = tmp_path / "own_net_of_a_test.py"
    module.write_text(MODULE.format(name="own_net_of_a_test"))
    path = written(('"lcnet_050"', '"own_net_of_a_test"'), ("claims", 'imports = ["own_net_of_a_test.py"]\nclaims'))
    table = own.load(path)
    assert table.imports == (str(module),)
    train = plan(RunOptions(table, tmp_path, imports=table.imports)).trainings[0]
    assert train.inputs["source"] == modules.digest(str(module))
    store = Store(tmp_path / "results")
    found = {"top1": 5.0, "trained": True, "epochs": [{"top1": 5.0}], "steps": 200, "test_images": 1000}
    found["tries"] = [{"learning_rate": 0.05, "outcome": "trained"}]
    store.put("train", train.inputs, found, {}, {})
    assert Records([store], imports=table.imports).runs(table, table.rows[0]).train
    module.write_text(module.read_text() + "\n# another text\n")
    modules.files.cache_clear()
    modules.digest.cache_clear()
    records = Records([store], imports=table.imports)
    assert not records.runs(table, table.rows[0]).train
    assert records.missing(table.rows[0]) == CHANGED
    assert Records([store]).runs(table, table.rows[0]).train  # where nobody says what the text is now


def test_claims_are_judged_as_the_papers_are(written: Callable[..., Path], tmp_path: Path) -> None:
    table, store = own.load(written()), Store(tmp_path / "results")
    trainings = plan(RunOptions(table, tmp_path)).trainings
    for train, error, rate in zip(trainings, (20.0, 10.0, 10.1), (0.05, 0.05, 0.0125), strict=True):
        found = {"top1": error, "trained": True, "epochs": [{"top1": error}], "steps": 200, "test_images": 1000}
        found["tries"] = [{"learning_rate": rate, "outcome": "trained"}]
        store.put("train", train.inputs, found, {}, {})
    records = Records([store])
    entries = [Entry(table, row, records.runs(table, row)) for row in table.rows]
    judged = own_claims.judge(entries)
    assert [finding.verdict for _, (finding,) in judged] == ["confirmed", "too close to tell"]
    assert judged[1][0].words == "Wide is best."
    assert own_claims.remarks(entries)[0].startswith("claim wide < tiny: confirmed: wide 10.00 < tiny 20.00")
    assert ' "Wide is best.": too close to tell: wide 10.00 < ' in own_claims.remarks(entries)[1]
    assert own_claims.remarks(entries)[1].count("too close to tell") == 1
    assert "learning rate" not in own_claims.remarks(entries)[0]
    assert "resnet18 at a quarter of wide's learning rate" in own_claims.remarks(entries)[1]
    assert (
        own_claims.judge([Entry(table, row, Records([]).runs(table, row)) for row in table.rows])[0][1][0].verdict
        == "not yet measured"
    )
    fewer = spec.with_rows(table, ["wide", "tiny"])
    entries = [Entry(fewer, row, records.runs(fewer, row)) for row in fewer.rows]
    assert [claim.title for claim, _ in own_claims.judge(entries)] == ["wide < tiny"], "resnet18 was left out"


def test_init_writes_an_example_that_is_valid_and_replaces_nothing(suite: Run, tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    code, out, _ = suite("init", str(path))
    assert (code, out) == (0, f"{path}: written; next: suite run --table {path}\n")
    api.load_table(path)
    path.write_text("mine")
    code, _, err = suite("init", str(path))
    assert (code, err, path.read_text()) == (2, f"error: {path}: is there already; give another name\n", "mine")
    assert suite("init", str(tmp_path / "table.txt"))[0] == suite("init", str(tmp_path / "no" / "t.toml"))[0] == 2


@pytest.mark.full
def test_what_init_writes_is_learned_by_its_networks(
    suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite("init", "table.toml")
    code, out, err = suite("run", "--table", "table.toml", "--stages", "train", "--format", "json")
    assert code == 0, err
    errors = [row["top1"] for row in json.loads(out)["rows"]]
    assert len(errors) == 3
    assert max(errors) < 50, "chance is 90"


def test_the_example_is_one_table_and_forty_lines_of_python() -> None:
    assert len((EXAMPLES / "my_models.py").read_text().splitlines()) <= 40
    assert len(api.load_table(EXAMPLES / "my_table.toml").rows) == 3


@pytest.mark.full
def test_the_example_is_trained_exported_checked_and_timed_by_processes_that_get_its_module(
    suite: Run, tmp_path: Path
) -> None:
    asked = ("--table", str(EXAMPLES / "my_table.toml"), "--results", str(tmp_path))
    short = ("--steps", "3", "--workers", "2", "--batch-sizes", "1", "--format", "csv", "--columns", "all")
    code, out, err = suite("run", *asked, *short)
    assert code == 0, err
    assert out.count(",quick,") == 3
    assert "resnet20_sqrelu_bn" in out
    shown = suite("show", *asked)
    assert shown[0] == 0
    assert "claim resnet20_relu_bn < resnet20_relu_gn: not yet measured" in " ".join(shown[1].split())
    assert (tmp_path / "report-my_table" / "index.html").is_file()
