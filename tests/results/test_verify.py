import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.errors import InputError
from suite.results.record import AnyRecord
from suite.results.store import Store
from suite.results.verify import verify
from suite.training import checkpoint

INPUTS: dict[str, Any] = {"model": "resnet20_relu_bn", "seed": 0}


@pytest.fixture
def record(store: Store) -> AnyRecord:
    """A record of no particular stage with two files."""
    with store.workspace() as folder:
        (folder / "weights").write_bytes(bytes(1000))
        (folder / "config").write_text("{}")
        return store.put("other", INPUTS, {"value": 1.5, "name": "a\u00e4\x1b"}, {}, {}, folder)


@pytest.fixture
def path(store: Store, record: AnyRecord) -> Path:
    return store.root / "records" / "other" / f"resnet20_relu_bn-{record.key}.json"


def problem(store: Store) -> str:
    """The one thing that is wrong."""
    (found,) = verify(store.root).problems
    assert "\n" not in found
    return found


def test_what_the_suite_wrote_has_no_problem(
    store: Store, record: AnyRecord, add_run: Callable[..., dict[str, AnyRecord]]
) -> None:
    add_run()
    store.fail("export", INPUTS, "out of memory")
    checkpoint.write(store.checkpoints("train", INPUTS), 1, {"weight": torch.ones(2)}, {})
    seen: list[tuple[int, int, str]] = []
    found = verify(store.root, lambda *step: seen.append(step))
    assert found.problems == []
    assert (found.records, found.files, found.bytes) == (5, 2, 1002)
    assert seen[-1] == (1002, 1002, "bytes")


def test_files_may_be_left_out_but_those_there_are_whole(store: Store, record: AnyRecord) -> None:
    store.artifact(record, "config").unlink()
    assert len(verify(store.root).problems) == 1
    found = verify(store.root, without_files=True)
    assert (found.problems, found.files, found.bytes, found.left_out) == ([], 1, 1000, 1)
    assert found.summary == "read 1 record and 1 file (1,000 bytes); 1 file was left out: no problems"
    store.artifact(record, "weights").write_bytes(bytes(999))
    assert len(verify(store.root, without_files=True).problems) == 1


def test_published_results_may_lack_files_but_not_the_weights_that_their_index_lists(
    store: Store, record: AnyRecord
) -> None:
    index = store.root.parent / "weights.json"
    files = [f"{store.root.name}/{record.artifacts['weights'].path}"]
    index.write_text(json.dumps({"weights": [{"file": file} for file in files]}))
    store.artifact(record, "config").unlink()
    found = verify(store.root)
    assert (found.problems, found.files, found.bytes, found.left_out) == ([], 1, 1000, 1)
    assert found.summary == "read 1 record and 1 file (1,000 bytes); 1 file was left out: no problems"
    store.artifact(record, "weights").unlink()
    assert "weights: missing" in problem(store)
    index.write_text('{"weights": [3]}')
    with pytest.raises(InputError, match=r"weights\.json: is no index of weights .* list weights --results "):
        verify(store.root)


@pytest.mark.parametrize(
    "change", [{"error": 1.0}, {"mean": [0, 0, 0]}, {"num_classes": 10**9}, {"sha256": "0" * 64}, {"seed": 1}]
)
def test_an_index_of_weights_says_of_them_what_their_records_say(change: dict[str, Any], tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "results" / "published"
    content = json.loads((published / "weights.json").read_text("utf-8"))
    entry = next(each for each in content["weights"] if each["name"] == "resnet20_relu_bn.cifar10_10ep")
    file = Path(entry["file"])
    (record,) = published.glob(f"{file.parts[0]}/records/train/*-{file.parent.name}.json")
    for each in (record, published / file, published / file.with_name("config.json")):
        copy = tmp_path / each.relative_to(published)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(each.read_bytes())
    index = tmp_path / "weights.json"
    index.write_text(json.dumps({"weights": [entry]}))
    assert verify(tmp_path / file.parts[0]).problems == []
    index.write_text(json.dumps({"weights": [entry | change]}))
    (said,) = verify(tmp_path / file.parts[0]).problems
    assert said.startswith(f"{index}: says other things of {entry['name']} than its record; ")


@pytest.mark.parametrize("size", [0, 999, 1001])
def test_a_file_of_another_size_is_named_with_the_record_to_delete(
    store: Store, record: AnyRecord, path: Path, size: int
) -> None:
    store.artifact(record, "weights").write_bytes(bytes(size))
    assert problem(store) == (
        f"{store.artifact(record, 'weights')}: {size} bytes instead of 1000; delete {path} to make it again"
    )
    assert store.get("other", INPUTS) is None, "a run makes it again by itself"


def test_a_file_of_which_one_bit_was_changed_is_named(store: Store, record: AnyRecord) -> None:
    store.artifact(record, "weights").write_bytes(bytes(999) + b"\1")
    assert "weights: its content is not what was written" in problem(store)


def test_a_file_that_is_gone_is_named(store: Store, record: AnyRecord) -> None:
    store.artifact(record, "weights").unlink()
    assert "weights: missing; left out on purpose, verify --without-files; else delete" in problem(store)


def test_many_files_that_are_gone_were_more_likely_left_out(store: Store, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "weights").write_bytes(b"w")
        inputs = {**INPUTS, "seed": number}
        record = store.put("other", inputs, {}, {}, {}, tmp_path / str(number))
        store.artifact(record, "weights").unlink()
    said = problem(store)
    assert "missing, like 4 others" in said
    assert "verify --without-files" in said


def test_files_that_were_removed_on_purpose_are_no_problem(store: Store, record: AnyRecord) -> None:
    store.remove_files(record, "cleaned")
    found = verify(store.root)
    assert (found.problems, found.left_out) == ([], len(record.artifacts))
    assert store.get("other", INPUTS) is None
    assert store.get_even_without_files("other", INPUTS) == record
    (store.root / "removed" / "0123").write_text("of nothing")
    assert "0123: unexpected, of no record" in problem(store)


def test_a_file_that_became_a_link_is_named(store: Store, record: AnyRecord, tmp_path: Path) -> None:
    file = store.artifact(record, "weights")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert "weights: a link, not a file" in problem(store)


@pytest.mark.parametrize(
    "place",
    ["records/other/a.tmp", "records/a.json", "artifacts/0/a", "failures/train/a", "checkpoints/0/a.tmp"],
)
def test_what_belongs_to_nothing_is_named(store: Store, record: AnyRecord, place: str) -> None:
    file = store.root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    assert problem(store).startswith(f"{file}: unexpected")


def test_a_link_in_the_place_of_a_folder_and_a_folder_in_that_of_a_record_are_named(
    store: Store, record: AnyRecord, tmp_path: Path
) -> None:
    folder = store.root / "records" / "train" / "resnet20_relu_bn-0.json"
    folder.mkdir(parents=True)
    assert problem(store) == f"{folder}: not a record (not a regular file); delete it to measure again"
    folder.rmdir()
    (store.root / "records").rename(tmp_path / "elsewhere")
    (store.root / "records").symlink_to(tmp_path / "elsewhere")
    found = verify(store.root)
    assert found.records == 0
    assert found.problems[0] == f"{store.root / 'records'}: unexpected; delete it"


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def of_a_record(store: Store) -> str:
    """What is wrong with the record; its files, which may be all that is left of a training, are not complained of."""
    (first,) = verify(store.root).problems
    return first


@pytest.mark.parametrize("changes", [{"result": {"value": 1.4}}, {"finished": "yesterday"}, {"digest": "0" * 64}])
def test_a_changed_record_is_named(store: Store, path: Path, changes: dict[str, Any]) -> None:
    change(path, **changes)
    assert of_a_record(store) == (f"{path}: not a record (changed since it was written); delete it to measure again")


def test_a_record_from_before_digests_is_checked_by_its_key(store: Store, path: Path) -> None:
    change(path, digest="")
    assert verify(store.root).problems == []
    change(path, inputs=INPUTS | {"seed": 1})
    assert "its key is not the hash of its inputs" in of_a_record(store)


def test_of_published_results_git_is_the_remedy(store: Store, path: Path) -> None:
    (store.root.parent / "weights.json").write_text('{"weights": []}')  # as beside published folders
    change(path, finished="yesterday")
    assert of_a_record(store) == f"{path}: not a record (changed since it was written); git checkout restores it"


def test_what_cannot_be_read_is_not_to_be_deleted(
    store: Store, record: AnyRecord, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.fail("export", INPUTS, "out of memory")
    store.save_plan({"command": "", "stages": []})
    (note,) = (store.root / "failures").glob("*/*.json")
    (plan,) = (store.root / "plans").glob("*.json")
    whole = Path.open

    def open_but(file: Path, *arguments: Any, **options: Any) -> Any:
        if file in (path, note, plan):
            raise OSError(5, "Input/output error")
        return whole(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_but)
    expected = [f"{file}: cannot be read: Input/output error" for file in (path, note, plan)]
    assert [said for said in verify(store.root).problems if "unexpected" not in said] == expected


def test_a_record_under_another_name_is_named(store: Store, path: Path) -> None:
    path.rename(path.with_name("resnet110_relu_bn-0.json"))
    assert "resnet110_relu_bn-0.json: not a record (it belongs at" in of_a_record(store)


def test_a_record_whose_upstream_is_gone_is_named(store: Store, add_run: Callable[..., dict[str, AnyRecord]]) -> None:
    records = add_run()
    (store.root / "records" / "export" / f"resnet110_relu_bn-{records['export'].key}.json").unlink()
    problems = verify(store.root).problems
    assert len(problems) == 2, "parity and latency"
    assert all(f"made from export {records['export'].key}, of which there is no sound record" in p for p in problems)


def test_a_damaged_checkpoint_and_one_of_a_finished_training_are_named(store: Store, record: AnyRecord) -> None:
    folder = store.checkpoints("train", INPUTS)
    checkpoint.write(folder, 1, {"weight": torch.ones(2)}, {})
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert problem(store).startswith(f"{file}: damaged checkpoint (")
    file.unlink()
    checkpoint.write(store.root / "checkpoints" / record.key, 1, {"weight": torch.ones(2)}, {})
    assert "of no training under way" in problem(store)
