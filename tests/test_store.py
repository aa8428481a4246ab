import json
import os
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.store import Store, key_of

INPUTS: dict[str, Any] = {"model": "resnet20_relu_bn", "seed": 0}


def put(store: Store, inputs: dict[str, Any] = INPUTS, result: object = 1, **files: str) -> Any:
    with store.workspace() as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        return store.put(
            "train", inputs, {"value": result}, {"machine": "m"}, {"seconds": 1.5}, folder if files else None
        )


def test_a_record_comes_back_as_it_was_put(store: Store) -> None:
    record = put(store, weights="abc")
    assert store.get("train", INPUTS) == record
    assert store.records("train") == [record]
    assert record.result == {"value": 1}
    assert store.artifact(record, "weights").read_text() == "abc"
    assert record.artifacts["weights"]["bytes"] == 3
    assert record.artifacts["weights"]["sha256"].startswith("ba7816bf8f01cfea")


def test_other_users_of_a_shared_folder_may_read_results(store: Store) -> None:
    record = put(store, weights="abc")
    (path,) = (store.root / "records" / "train").iterdir()
    assert path.stat().st_mode & 0o777 == 0o644
    assert store.artifact(record, "weights").parent.stat().st_mode & 0o777 == 0o755


def test_what_was_not_put_is_not_there(store: Store) -> None:
    put(store)
    assert store.get("train", INPUTS | {"seed": 1}) is None
    assert store.get("export", INPUTS) is None
    assert store.records("export") == []


def test_the_key_depends_on_every_input_but_not_on_their_order() -> None:
    key = key_of("train", {"a": 1, "b": [1, 2]})
    assert key == key_of("train", {"b": (1, 2), "a": 1})
    assert key != key_of("export", {"a": 1, "b": [1, 2]})
    assert key != key_of("train", {"a": 1, "b": [2, 1]})


def test_the_first_result_of_given_inputs_stays(store: Store) -> None:
    first = put(store, result=1, weights="first")
    second = put(store, result=2, weights="second")
    assert second == first
    assert store.artifact(second, "weights").read_text() == "first"


def test_files_left_by_a_run_that_was_killed_are_replaced(store: Store) -> None:
    left = store.root / "artifacts" / key_of("train", INPUTS)
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    record = put(store, weights="whole")
    assert [path.name for path in left.iterdir()] == ["weights"]
    assert store.get("train", INPUTS) == record


def test_a_record_whose_files_are_gone_is_made_again(store: Store) -> None:
    record = put(store, weights="abc")
    store.artifact(record, "weights").unlink()
    assert store.get("train", INPUTS) is None
    again = put(store, weights="abc")
    assert store.artifact(again, "weights").is_file()


def test_nothing_is_left_behind_by_work_that_fails(store: Store) -> None:
    def fail() -> None:
        with store.workspace() as folder:
            (folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((store.root / "work").iterdir()) == []
    assert store.records("train") == []


def test_a_result_that_is_not_finite_is_refused_and_leaves_no_file(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        put(store, result=float("nan"))
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_failure_is_kept_until_the_stage_succeeds(store: Store) -> None:
    store.fail("train", INPUTS, "out of memory")
    store.fail("train", INPUTS, "still out of memory")
    assert [failure["reason"] for failure in store.failures()] == ["still out of memory"]
    put(store)
    assert store.failures() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "stage": "train", "colour": 1}'])
def test_a_file_that_is_no_record_is_named(store: Store, text: str) -> None:
    put(store)
    path = next((store.root / "records" / "train").iterdir())
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path.name}: not a record.*delete it"):
        store.records("train")


def test_a_record_of_another_version_is_refused(store: Store) -> None:
    put(store)
    path = next((store.root / "records" / "train").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="record format 99; this suite reads format 1"):
        store.get("train", INPUTS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write there"), Store(tmp_path / "results").workspace():
        pass


def test_a_results_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="cannot write there"), Store(tmp_path / "results").workspace():
        pass


def test_records_can_be_asked_for_by_model_and_others_are_not_read(store: Store) -> None:
    record = put(store)
    (store.root / "records" / "train" / "resnet20_crelu_bn-0.json").write_text("not a record")
    assert store.records("train", {"resnet20_relu_bn"}) == [record]
    assert store.records("train", {"resnet20"}) == []


@pytest.mark.parametrize(
    "epochs", [[], [{"top1": 1.0}, {"top1": 2.0}], [{"top1": [1.0, 2.0]}], ["]", '"epochs": [']], ids=str
)
def test_a_list_that_nobody_looks_at_is_left_out_and_the_rest_is_as_it_is(store: Store, epochs: list[Any]) -> None:
    result = {"a": '"epochs": [1]', "epochs": epochs, "z": [1, 2]}
    whole = store.put("train", INPUTS | {"recipe": {"epochs": 3}}, result, {}, {})
    (record,) = store.each("train", without="epochs")
    assert record.result == {"a": '"epochs": [1]', "z": [1, 2]}
    assert (record.inputs, record.key, record.finished) == (whole.inputs, whole.key, whole.finished)
    assert store.records("train") == [whole]


def test_a_record_cut_short_is_named_even_where_it_is_not_read_whole(store: Store) -> None:
    store.put("train", INPUTS, {"epochs": [{"top1": 1.0}]}, {}, {})
    path = next((store.root / "records" / "train").iterdir())
    for length in (path.stat().st_size - 3, path.read_text().index("top1")):
        path.write_text(path.read_text()[:length])
        with pytest.raises(InputError, match="not a record"):
            list(store.each("train", without="epochs"))
