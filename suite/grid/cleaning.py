"""What a results folder need not keep: found by what it is for, and removed."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.grid import status
from suite.grid.claims import Claims
from suite.grid.plan import Grid
from suite.results.record import AnyRecord, ConvertRecord, ExportRecord, TrainRecord
from suite.results.store import Store

# What may be removed, and what it is.
KINDS = {
    "quick": "weights and ONNX files of runs shorter than an epoch, which the same command makes again",
    "onnx": "ONNX files of other runs, which are exported again from their weights",
    "checkpoints": "of trainings that were stopped, which then begin anew",
}
# What is removed where nothing is asked for: what no figure and no work depends on.
USUAL = ("quick",)


@dataclass(frozen=True)
class Removable:
    """Something that a folder need not keep: of which kind, where, and its bytes.
    `record` is that of its files, None for checkpoints. What is `needed` stays as long
    as somebody works with it."""

    kind: str
    path: Path
    bytes: int
    record: AnyRecord | None
    needed: bool


def find(store: Store) -> list[Removable]:
    """What there is of each kind. Needed is what is of a stage under way, or of a
    command's stages while one of the same network is not done.

    Raises:
        InputError: a record or a plan is damaged.
    """
    return [*_files(store, _busy(store)), *_checkpoints(store)]


def find_removable(store: Store, kinds: Sequence[str] = tuple(KINDS)) -> list[Removable]:
    """What may be removed of these kinds; errors as of `find`."""
    return [each for each in find(store) if each.kind in kinds and not each.needed]


def remove(store: Store, these: Sequence[Removable]) -> None:
    """Remove them; records stay, and say that their files were removed on purpose.

    Raises:
        InputError: the folder cannot be written to.
    """
    for each in these:
        if each.record is not None:
            store.remove_files(each.record, f"cleaned: {KINDS[each.kind]}")
        else:
            shutil.rmtree(each.path, ignore_errors=True)


def clean_after_quick_run(store: Store, grid: Grid) -> None:
    """Remove what a quick run needs no longer."""
    mine = {stage.key for stage in grid.stages}
    remove(store, [each for each in find_removable(store, ("quick",)) if each.record and each.record.key in mine])


def _files(store: Store, busy: set[str]) -> Iterator[Removable]:
    trains = {record.key: record for record in store.typed(TrainRecord)}
    source = {record.key: record.inputs.train for record in store.typed(ExportRecord)}
    source |= {record.key: record.inputs.export for record in store.typed(ConvertRecord)}
    for record in (record for kind in ("train", "export", "convert") for record in store.each(kind)):
        folder = store.root / "artifacts" / record.key
        origin = record.key
        while origin in source:
            origin = source[origin]
        if origin not in trains or not folder.is_dir():
            continue
        kind = "quick" if trains[origin].is_quick else "onnx"
        if kind == "quick" or record.stage != "train":
            yield Removable(kind, folder, _size(folder), record, needed=record.key in busy)


def _checkpoints(store: Store) -> Iterator[Removable]:
    held = {claim.key for claim in Claims(store.root).under_way()}
    folder = store.root / "checkpoints"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield Removable("checkpoints", path, _size(path), None, needed=path.name in held)


def _busy(store: Store) -> set[str]:
    """Keys of the stages whose files some command has still to do with."""
    busy = {claim.key for claim in Claims(store.root).under_way()}
    for each in status.read(store):
        names = {stage.name.rpartition(": ")[0] for stage in each.stages if stage.key not in each.done}
        busy |= {stage.key for stage in each.stages if stage.name.rpartition(": ")[0] in names}
    return busy


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
