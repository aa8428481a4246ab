"""Latencies in their earlier layouts: read as ever, and written anew with the same content."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from suite.errors import InputError
from suite.report import tables as report
from suite.results import compact
from suite.results.compare import compare, render
from suite.results.record import AnyRecord, LatencyRecord, TimedRecord, in_seconds, key_of, read_record
from suite.results.store import Store
from suite.results.verify import verify
from suite.tables import spec

SECONDS = [[0.012238264000188792, 0.0118013119972602], [0.011978725997323636, 0.0119, 0.25]]
FLAT = [seconds for each in SECONDS for seconds in each]
Suite = Callable[..., tuple[int, str, str]]


def put_old(store: Store, result: dict[str, Any]) -> Path:
    """Write a latency as the first format had it: indented throughout, with a digest. Returns its path."""
    inputs = {"model": "resnet110_relu_bn", "export": "e", "machine": "m", "runtime": "onnxruntime", "provider": "cpu"}
    record = store.put("latency", inputs | {"batch_size": 8}, result, {}, {"seconds": 1.5})
    path = store.root / "records" / "latency" / f"{record.inputs['model']}-{record.key}.json"
    none = 64 * "0"
    content = json.loads(path.read_text()) | {"format": 1, "digest": none}
    text = json.dumps(content, indent=1, sort_keys=True)
    path.write_text(text.replace(none, hashlib.sha256(text.encode()).hexdigest(), 1))
    return path


def as_read(path: Path) -> TimedRecord:
    return in_seconds(read_record(path, LatencyRecord))


@pytest.fixture
def rounds(store: Store) -> Path:
    return put_old(store, {"rounds": SECONDS, "samples": FLAT, "load_seconds": 0.1, "in_turns_with": 5})


def without_upstream(store: Store) -> list[str]:
    """Problems but for the exports, of which these tests have none."""
    return [problem for problem in verify(store.root).problems if "made from export" not in problem]


def test_a_record_written_anew_says_what_it_said_to_the_nanosecond(store: Store, rounds: Path) -> None:
    before, text = as_read(rounds), rounds.read_bytes()
    found = compact.rewrite(store)
    assert (found.records, found.runs, found.before, found.after) == (1, 5, len(text), len(rounds.read_bytes()))
    assert 0 < found.furthest < 1e-11
    kept = json.loads(rounds.read_text())
    assert kept["result"] == {
        "rounds_ns": [[12238264, 11801312], [11978726, 11900000, 250000000]],
        "load_seconds": 0.1,
        "in_turns_with": 5,
    }
    assert (kept["format"], kept["key"], kept["finished"]) == (2, before.key, before.finished)
    after = as_read(rounds)
    assert list(after.result.samples) == pytest.approx(FLAT, abs=0.5e-9)
    assert after.result.rounds == (2, 3)
    assert without_upstream(store) == []


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        ({"samples": FLAT}, {"samples_ns": [12238264, 11801312, 11978726, 11900000, 250000000]}),
        ({"rounds": [[0.01], []], "samples": [0.01]}, {"rounds_ns": [[10000000], []]}),
        ({"samples": [0.01], "host_samples": [0.02]}, {"samples_ns": [10000000], "host_samples_ns": [20000000]}),
    ],
)
def test_each_earlier_form_is_read_and_written_anew(store: Store, result: dict[str, Any], kept: dict[str, Any]) -> None:
    path = put_old(store, result)
    before = as_read(path)
    assert list(before.result.samples) == result["samples"]
    assert list(before.result.host_samples) == result.get("host_samples", [])
    assert before.result.rounds == tuple(map(len, result.get("rounds", [])))
    assert compact.rewrite(store).records == 1
    assert json.loads(path.read_text())["result"] == kept
    after = as_read(path).result
    assert after.rounds == before.result.rounds
    assert list(after.samples) == pytest.approx(result["samples"], abs=0.5e-9)
    assert after.host_samples == before.result.host_samples
    assert compact.rewrite(store) == compact.RewriteSummary()


@example([[35184.4056935105]])
@given(st.lists(st.lists(st.floats(1e-8, 1e5), max_size=5), max_size=5).filter(lambda rounds: any(rounds)))
def test_no_run_is_further_than_half_a_nanosecond_from_what_it_was(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[float]]
) -> None:
    """But for the rounding of floating point, which shows at hours."""
    store = Store(tmp_path_factory.mktemp("drawn"))
    path = put_old(store, {"rounds": rounds, "samples": [seconds for each in rounds for seconds in each]})
    before = as_read(path).result.by_round()
    assert compact.rewrite(store).records == 1
    for old, new in zip(before, as_read(path).result.by_round(), strict=True):
        assert list(new) == pytest.approx(list(old), abs=0.53e-9, rel=1e-15)


def test_tables_and_comparisons_print_the_same_before_and_after(store: Store, add_run: Callable[..., Any]) -> None:
    add_run(samples=tuple(0.0101 + 1.7e-5 * n for n in range(150)))

    def printed() -> Iterator[Sequence[object]]:
        built = report.build(spec.with_rows(spec.load_table(2), ["resnet110_relu_bn@cifar10"]), store, detail=True)
        for line in built.lines:
            yield [(c.show(v) if isinstance(v := line.values.get(c.key), float) else v) for c in built.columns]
        yield render(compare(store.root, store.root))

    before = list(printed())
    assert compact.rewrite(store).records == 1
    assert list(printed()) == before


@pytest.mark.parametrize(
    "result",
    [
        {"rounds": SECONDS, "samples": FLAT[:-1]},  # which of the two is right nobody knows
        {"rounds": SECONDS, "samples": sorted(FLAT)},
        {"samples": [0.01, -0.01]},
        {"samples": [1e-10]},
        {"samples": [1e300]},
        {"samples": []},
        {"samples": "fast"},
        {"samples": [0.01], "rounds_ns": [[10000000]]},
        {"rounds_ns": [[10000000]]},
    ],
)
def test_a_timing_that_is_not_understood_is_left_alone(store: Store, result: dict[str, Any]) -> None:
    path = put_old(store, result)
    text, problems = path.read_bytes(), verify(store.root).problems
    assert compact.rewrite(store) == compact.RewriteSummary()
    assert path.read_bytes() == text
    assert verify(store.root).problems == problems


@pytest.mark.parametrize("fault", ["changed", "another name", "another version", "cut", "link", "other stage"])
def test_what_is_no_sound_record_is_left_alone(store: Store, rounds: Path, tmp_path: Path, fault: str) -> None:
    if fault == "changed":
        rounds.write_bytes(rounds.read_bytes().replace(b"0.25", b"0.26"))
    elif fault == "another name":
        rounds = rounds.rename(rounds.with_name("resnet110_crelu_bn-0.json"))
    elif fault == "another version":
        rounds.write_text(json.dumps(json.loads(rounds.read_text()) | {"format": 99, "digest": ""}))
    elif fault == "cut":
        rounds.write_bytes(rounds.read_bytes()[:-9])
    elif fault == "link":
        rounds.rename(tmp_path / "elsewhere")
        rounds.symlink_to(tmp_path / "elsewhere")
    else:
        record = store.put("other", {"model": "m"}, {"rounds": SECONDS, "samples": FLAT}, {}, {})
        rounds.unlink()
        rounds = store.root / "records" / "other" / f"m-{record.key}.json"
    text = rounds.read_bytes()
    assert compact.rewrite(store) == compact.RewriteSummary()
    assert rounds.read_bytes() == text
    assert rounds.is_symlink() == (fault == "link")


def test_a_record_that_another_process_has_changed_meanwhile_is_left_alone(store: Store, rounds: Path) -> None:
    text = rounds.read_bytes()
    assert not store.replace(rounds, text + b" ", b"{}")
    assert rounds.read_bytes() == text


@pytest.mark.parametrize("change", ["a run", "a round", "another figure", "an input"])
def test_a_record_that_says_something_else_in_its_new_layout_is_not_equal(
    store: Store, rounds: Path, change: str
) -> None:
    content = json.loads(rounds.read_text())
    old = msgspec.convert(content, AnyRecord)
    new = json.loads(json.dumps(content))
    new["result"] = {"rounds_ns": [[12238264, 11801312], [11978726, 11900000, 250000000]]}
    new["result"] |= {"load_seconds": 0.1, "in_turns_with": 5}
    assert compact.differences(old, msgspec.convert(new, AnyRecord)) is not None
    if change == "a run":
        new["result"]["rounds_ns"][1][2] += 1
    elif change == "a round":
        new["result"]["rounds_ns"] = [[12238264], [11801312, 11978726, 11900000, 250000000]]
    elif change == "another figure":
        new["result"]["load_seconds"] = 0.2
    else:
        new["inputs"]["batch_size"] = 1
    assert compact.differences(old, msgspec.convert(new, AnyRecord)) is None


def test_text_that_a_terminal_would_obey_stays_what_it_is(store: Store) -> None:
    path = put_old(store, {"samples": [0.01], "provider": "a\u00e4\x1b"})
    assert compact.rewrite(store).records == 1
    assert json.loads(path.read_text())["result"]["provider"] == "a\u00e4\x1b"
    assert without_upstream(store) == []


def test_a_record_from_before_digests_has_one_afterwards(store: Store) -> None:
    path = put_old(store, {"samples": [0.01]})
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}))
    assert compact.rewrite(store).records == 1
    path.write_bytes(path.read_bytes().replace(b"10000000", b"10000001"))
    with pytest.raises(InputError, match="changed since it was written"):
        read_record(path, AnyRecord)


def test_a_folder_that_cannot_be_written_to_keeps_its_records(
    store: Store, rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    text = rounds.read_bytes()
    monkeypatch.setattr("suite.results.store.write", full)
    with pytest.raises(InputError, match="cannot write there: No space left on device"):
        compact.rewrite(store)
    assert rounds.read_bytes() == text


def test_the_command_says_sizes_and_how_far_runs_moved_and_verifies(store: Store, rounds: Path, suite: Suite) -> None:
    code, out, _ = suite("verify", "--rewrite", "--results", str(store.root))
    first, *others = out.splitlines()
    assert first.startswith("1 records written anew, ")
    assert first.endswith(": 5 runs within half a nanosecond of what they were (at most 0.0027 ns), all else equal")
    assert code == 1, "its export is not there"
    assert others[-1] == "read 1 record and no files: 1 problem"
    _, out, _ = suite("verify", "--rewrite", "--results", str(store.root))
    assert out.startswith("no record of an earlier layout to write anew\n")


def test_a_thorough_latency_takes_an_eighth_of_the_room(store: Store) -> None:
    many = [[0.000457 + 1e-9 * n + 1.7e-13 for n in range(100)] for _ in range(24)]
    path = put_old(store, {"rounds": many, "samples": [seconds for each in many for seconds in each]})
    before = path.stat().st_size
    assert before > 120_000
    assert compact.rewrite(store).after == path.stat().st_size < before / 6 < 22_000


def test_keys_are_those_of_the_first_format() -> None:
    # A published one: what is done already is done, whatever the form of its record.
    inputs = {"model": "resnet20_relu_bn", "seed": 0}
    assert key_of("train", inputs) == "8ddf30fb9df1705920f8"
