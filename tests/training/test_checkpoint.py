from pathlib import Path

import pytest
import torch

from suite.training import checkpoint

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "count": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 5, TENSORS, {"epoch": 3, "rates": [0.1]})
    found = checkpoint.read(tmp_path, no_warning)
    assert found is not None
    assert found[1] == {"epoch": 3, "rates": [0.1]}
    assert all(torch.equal(found[0][name], TENSORS[name]) for name in TENSORS)
    assert {name: value.dtype for name, value in found[0].items()} == {n: v.dtype for n, v in TENSORS.items()}


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path / "none", no_warning) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        checkpoint.write(tmp_path, number, TENSORS, {"number": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010.safetensors", "00000011.safetensors"]
    found = checkpoint.read(tmp_path, no_warning)
    assert found is not None
    assert found[1] == {"number": 11}


def test_numbers_of_more_digits_are_newer(tmp_path: Path) -> None:
    for number in (99_980_000, 99_990_000, 100_000_128, 192_000_000):
        checkpoint.write(tmp_path, number, TENSORS, {"number": number})
        found = checkpoint.read(tmp_path, no_warning)
        assert found is not None
        assert found[1] == {"number": number}
    assert {path.name for path in tmp_path.iterdir()} == {"100000128.safetensors", "192000000.safetensors"}


def test_files_of_other_names_are_neither_read_nor_removed(tmp_path: Path) -> None:
    others = {"best.safetensors", "00000009-copy.safetensors", ".safetensors"}
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    for number in (1, 2, 3):
        checkpoint.write(tmp_path, number, TENSORS, {"number": number})
    found = checkpoint.read(tmp_path, no_warning)
    assert found is not None
    assert found[1] == {"number": 3}
    assert {path.name for path in tmp_path.iterdir()} == others | {"00000002.safetensors", "00000003.safetensors"}


def test_a_file_half_written_by_a_killed_process_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, TENSORS, {"number": 1})
    (tmp_path / "00000002.tmp").write_bytes(b"half")
    found = checkpoint.read(tmp_path, no_warning)
    assert found is not None
    assert found[1] == {"number": 1}


def damaged(raw: bytes) -> list[bytes]:
    """The file cut at every 1/16 of its length, and with one bit turned in each sixteenth."""
    cuts = [raw[: len(raw) * part // 16] for part in range(16)]
    places = [len(raw) * part // 16 + 3 for part in range(16)]
    return cuts + [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in places]


@pytest.mark.parametrize("case", range(32))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, case: int) -> None:
    for number in (1, 2):
        checkpoint.write(tmp_path, number, TENSORS, {"number": number})
    newest = tmp_path / "00000002.safetensors"
    newest.write_bytes(damaged(newest.read_bytes())[case])
    warnings: list[str] = []
    found = checkpoint.read(tmp_path, warnings.append)
    assert found is not None
    assert found[1] == {"number": 1}
    assert len(warnings) == 1
    assert "00000002.safetensors: damaged checkpoint" in warnings[0]
