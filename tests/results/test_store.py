import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.files import write
from suite.grid.claims import Claims
from suite.grid.plan import Stage
from suite.results.artifacts import sha256
from suite.results.record import key_of
from suite.results.store import Store

INPUTS: dict[str, Any] = {"model": "resnet20_relu_bn", "seed": 0}


def put(store: Store, inputs: dict[str, Any] = INPUTS, result: object = 1, **files: str) -> Any:
    with store.workspace() as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        return store.put(
            "train", inputs, {"value": result}, {"machine": {"id": "m"}}, {"seconds": 1.5}, folder if files else None
        )


def test_a_record_comes_back_as_it_was_put(store: Store) -> None:
    record = put(store, weights="abc")
    assert store.get("train", INPUTS) == record
    assert store.records("train") == [record]
    assert record.result == {"value": 1}
    assert store.artifact(record, "weights").read_text() == "abc"
    assert record.artifacts["weights"].bytes == 3
    assert record.artifacts["weights"].sha256.startswith("ba7816bf8f01cfea")


def test_other_users_of_a_shared_folder_may_read_results(store: Store) -> None:
    record = put(store, weights="abc")
    (path,) = (store.root / "records" / "train").iterdir()
    assert path.stat().st_mode & 0o777 == 0o644
    assert store.artifact(record, "weights").parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("folders", "files"), [(0o2775, 0o664), (0o700, 0o600)])
def test_all_that_is_new_in_a_folder_has_its_mode(store: Store, folders: int, files: int) -> None:
    store.root.mkdir()
    store.root.chmod(folders)
    put(store, weights="abc")
    store.fail("export", INPUTS, "a reason")
    store.save_plan({"command": "c", "stages": []})
    write(store.checkpoints("train", INPUTS) / "1.safetensors", b"")
    with Claims(store.root) as claims, store.workspace():
        claims.take(Stage("train", None, INPUTS))
        found = {(path.is_dir(), path.stat().st_mode & 0o7777) for path in store.root.rglob("*")}
        kinds = {path.name for path in store.root.iterdir()}
    assert kinds == {"records", "artifacts", "failures", "plans", "checkpoints", "claims", "work"}
    assert found == {(True, folders), (False, files)}


def test_a_folder_of_another_user_is_named_before_there_is_a_result(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check()  # there is none yet
    put(store, weights="abc")
    store.check()
    theirs = store.root / "records" / "train"
    monkeypatch.setattr(os, "access", lambda path, mode: path != theirs)
    with pytest.raises(InputError) as caught:
        store.check()
    assert str(caught.value) == (
        f"--results {store.root}: cannot write to {theirs}, which has the owner {os.getuid()}, the group "
        f"{theirs.stat().st_gid} and the mode 0755; have its owner give you the right, or use another folder"
    )


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


HOLD = """
import pathlib, signal, sys, time
from suite.results.store import Store
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
with Store(pathlib.Path(sys.argv[1])).workspace() as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_what_a_killed_process_was_at_is_removed_and_what_a_living_one_is_at_stays(
    store: Store, number: signal.Signals
) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        with store.workspace() as ours:
            store.sweep()
            assert folder.is_dir()
            assert ours.is_dir()
            process.send_signal(number)
            process.wait()
            assert (folder / "half").exists()
            store.sweep()
            assert list((store.root / "work").iterdir()) == [ours]
    finally:
        process.kill()
        process.communicate()


def test_what_another_machine_may_be_at_stays_for_a_week_after_its_last_change(store: Store) -> None:
    left = store.root / "work" / "01234567-abc"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    os.utime(left, (0, 0))
    store.sweep()
    assert left.is_dir()  # the file in it is new
    os.utime(left / "half", (0, 0))
    store.sweep()
    assert not left.exists()


def test_files_that_were_to_be_renamed_are_removed_after_a_week(store: Store) -> None:
    put(store)
    left = [store.root / "records" / "train" / ".x.json.abc.tmp", store.root / "claims" / "abc.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    store.sweep()
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (0, 0))
    store.sweep()
    assert not any(path.exists() for path in left)
    assert len(store.records("train")) == 1


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
    assert [failure.reason for failure in store.failures()] == ["still out of memory"]
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
    with pytest.raises(InputError, match="record format 99; this suite reads formats 1 and 2"):
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


def edited(store: Store, **changes: Any) -> Path:
    """The file of a record without digest, as from a stranger, with some values changed."""
    put(store, weights="abc")
    path = next((store.root / "records" / "train").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": ""} | changes))
    return path


def test_a_record_holds_a_hash_of_itself_and_is_refused_once_changed(store: Store) -> None:
    assert len(put(store).digest) == 64
    path = next((store.root / "records" / "train").iterdir())
    path.write_text(path.read_text().replace('"seconds": 1.5', '"seconds": 1.4'))
    with pytest.raises(InputError, match=f"{path.name}: not a record .changed since it was written.; delete it"):
        store.get("train", INPUTS)


def test_a_record_from_before_digests_is_read(store: Store) -> None:
    path = edited(store)
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(json.dumps(content))
    (record,) = store.records("train")
    assert (record.digest, record.result) == ("", {"value": 1})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"value": 1', '"value": 1, "value": 2', "'value' is given twice"),
        ('"value": 1', '"value": 1e400', "number out of range"),
        ('"value": 1', f'"value": {"1" + "0" * 5000}', "integer value out of range"),
        ('"value": 1', f'"value": {"[" * 100_000}', "maximum recursion depth exceeded"),
        ('"value": 1', '"value": NaN', "invalid character"),
        ('"value": 1', r'"value": "\ud800"', "hex escape"),
    ],
)
def test_json_that_readers_take_differently_is_refused(store: Store, old: str, new: str, reason: str) -> None:
    path = edited(store)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=f"{path.name}: not a record .*{reason}.*delete it"):
        store.records("train")


def test_invalid_utf_8_is_refused(store: Store) -> None:
    path = edited(store)
    path.write_bytes(path.read_bytes().replace(b"resnet20", b"resnet\xff0"))
    with pytest.raises(InputError, match="not a record"):
        store.records("train")


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": 1},
        {"key": None},
        {"inputs": []},
        {"inputs": {"model": 5}},
        {"result": 1},
        {"timing": "long"},
        {"artifacts": []},
        {"artifacts": {"weights": "weights"}},
        {"artifacts": {"weights": {"path": "weights"}}},
        {"environment": None},
        {"environment": {"machine": None}},
        {"environment": {"machine": {"id": [1]}}},
        {"environment": {"versions": None}},
        {"environment": {"command": None}},
        {"timing": {"seconds": None}},
        {"timing": {"seconds": -1}},
        {"colour": "red"},
        {"digest": "0"},
    ],
)
def test_a_value_of_the_wrong_type_is_refused(store: Store, changes: dict[str, Any]) -> None:
    path = edited(store, **changes)
    with pytest.raises(InputError, match=f"{path.name}: not a record"):
        store.records("train")


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "artifacts/../../secret", "artifacts/other/weights"])
@pytest.mark.parametrize("name", ["weights", "../../secret"])
def test_a_record_names_no_file_but_its_own(store: Store, tmp_path: Path, place: str, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    artifact = {"path": place, "sha256": "0" * 64, "bytes": 6}
    path = edited(store, artifacts={name: artifact})
    with pytest.raises(InputError, match=f"{path.name}: not a record .artifact .*; delete it"):
        store.get("train", INPUTS)
    with pytest.raises(InputError):
        put(store, weights="new")
    assert secret.read_text() == "secret"


@pytest.mark.parametrize("place", ["records", "records/train", "artifacts", "failures", "checkpoints", "work"])
def test_a_link_out_of_the_folder_is_named_and_not_followed(store: Store, tmp_path: Path, place: str) -> None:
    put(store, weights="abc")
    outside = tmp_path / "outside"
    (store.root / place).mkdir(parents=True, exist_ok=True)
    (store.root / place).rename(outside)
    (store.root / place).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    message = f"{store.root / place}.*: a link leads out of the results folder; delete the link"

    def use() -> None:
        put(store, weights="new")
        store.failures()
        store.checkpoints("train", INPUTS)

    with pytest.raises(InputError, match=message):
        use()
    assert sorted(outside.rglob("*")) == before


def test_a_record_or_its_files_that_are_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    record = put(store, weights="abc")
    artifacts = store.artifact(record, "weights").parent
    artifacts.rename(tmp_path / "outside")
    artifacts.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="a link leads out of the results folder"):
        store.get("train", INPUTS)
    path = next((store.root / "records" / "train").iterdir())
    path.rename(tmp_path / "record.json")
    path.symlink_to(tmp_path / "record.json")
    with pytest.raises(InputError, match=r"not a record .not a regular file"):
        store.get("train", INPUTS)
    path.unlink()
    assert store.artifact(put(store, weights="new"), "weights").read_text() == "new"
    assert (tmp_path / "outside" / "weights").read_text() == "abc"


def test_a_pipe_in_the_place_of_a_record_does_not_wait_for_ever(store: Store) -> None:
    path = edited(store)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        store.records("train")


def test_what_is_read_of_a_record_cannot_steer_a_terminal(store: Store) -> None:
    record = put(store, result="\x1b]0;owned\x07 \x9b2J \u202e \x7f na\u00efve")
    assert record.result["value"] == r"\x1b]0;owned\x07 \x9b2J \u202e \x7f na\u00efve".replace(r"\u00ef", "\u00ef")
    store.fail("train", INPUTS, "\x1b[31m")
    assert store.failures()[0].reason == r"\x1b[31m"


NOTE = '{"stage": "train", "reason": "", "inputs": {"model": "resnet20_relu_bn", %s}}'


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"stage": "train"}', '{"stage": 1, "inputs": {}, "reason": ""}']
    + [NOTE % more for more in ('"data": null', '"data": {"name": 1}', '"train": []', '"export": null')],
)
def test_a_damaged_failures_note_is_named(store: Store, text: str) -> None:
    store.fail("train", INPUTS, "out of memory")
    path = next((store.root / "failures" / "train").iterdir())
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path.name}: not the note of a failure .*; delete it"):
        store.failures()


@pytest.mark.parametrize("size", range(0, 16))
def test_a_file_cut_short_is_made_again(store: Store, size: int) -> None:
    record = put(store, weights="0123456789abcdef")
    store.artifact(record, "weights").write_text("0123456789abcdef"[:size])
    assert store.get("train", INPUTS) is None
    again = put(store, result=2, weights="another")
    assert store.artifact(again, "weights").read_text() == "another"
    assert again.result == {"value": 2}, "the record is that of its files"


def test_a_clock_set_back_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import suite.results.store

    first = put(store, result=1)

    class Back(suite.results.store.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(1999, 1, 1, tzinfo=tz)

    monkeypatch.setattr(suite.results.store, "datetime", Back)
    assert put(store, result=2) == first
    later = put(store, INPUTS | {"seed": 1}, result=3)
    assert later.finished.startswith("1999")
    assert {record.result["value"] for record in store.records("train")} == {1, 3}


def test_writers_of_one_cell_leave_a_record_and_files_of_one_piece(store: Store) -> None:
    def write(value: int) -> None:
        for seed in range(20):
            put(store, INPUTS | {"seed": seed}, result=value, weights=str(value) * 1000, config=str(value))

    # Each has the lock by a file of its own, so that threads keep out of each other's way as processes do.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    records = store.records("train")
    assert len(records) == 20
    for record in records:
        for name, file in record.artifacts.items():
            assert sha256(store.artifact(record, name)) == file.sha256
        assert store.artifact(record, "config").read_text() == str(record.result["value"])
