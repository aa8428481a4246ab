"""Who works on which stage: claims in a shared folder, by which processes and machines
divide the work of a grid.

    DIR/claims/KEY.N.json   the N-th claim on stage KEY: who holds it, and how far the work is
    DIR/runs/KEY.1.json     a run that is there: who it is

A claim is made by creating its file, which only one process can do. Its holder writes
it anew every few seconds. A claim whose holder died is taken over by creating the one
with the next number, which again only one process can do; the highest number holds.
Whether a holder is dead is decided without comparing clocks: one of this machine is
looked up among its processes, and one of another machine is dead once its file has
stayed the same for `PATIENCE` seconds of the observer's own clock. Should it be alive
after all, work is done twice and the first record counts.
"""

import contextlib
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from suite.errors import InputError
from suite.files import inherit_permissions, make_folder, read_if_file
from suite.progress import Pace
from suite.progress.duration import LONGEST
from suite.results.holder import Holder

# Seconds between two signs of life, and after how many without one a holder on another machine counts as dead.
BEAT = 2.0
PATIENCE = 60.0


@dataclass(frozen=True)
class Claim:
    """A stage under way, as its file says.

    Attributes:
        key, kind, name: of the stage.
        number: how many held it before, plus one.
        holder: who does it.
        done, total: steps of the work; 0 and 0 if it has not said any.
        note: on its speed.
        left: seconds for the other steps, as its holder sees it; 0 where it cannot say.
    """

    key: str
    kind: str
    name: str
    number: int
    holder: Holder
    done: int = 0
    total: int = 0
    note: str = ""
    left: float = 0.0


class Claimable(Protocol):
    """What is claimed: a stage, or what a run is there for."""

    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Presence:
    """A run that is there from its beginning to its end, whatever it is at; its `name`
    is the command, and its `key` that of no other run."""

    name: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    kind: str = "run"


class Claims:
    """The claims of a results folder, and those that this process holds. Use it as a
    context, which ends them all.

    Args:
        root: the results folder.
        kind: where they lie in it: "claims" are on stages, and in "runs" each run says
            that it is there.
    """

    def __init__(self, root: Path, kind: str = "claims") -> None:
        self.folder = root / kind
        self._me = Holder.this()
        self._held: dict[str, Claim] = {}
        self._paces: dict[str, Pace] = {}
        # What a claim's file last said, and when this process first saw it say so.
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._beats = threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> "Claims":
        self._beats.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._beats.join()
        for key in list(self._held):
            self.release(key)

    def take(self, stage: Claimable) -> bool:
        """Claim a stage; False if another process is at it.

        Raises:
            InputError: the folder cannot be written to.
        """
        files = self._files(stage.key)
        if files and self._is_alive(files[-1][1]):
            return False
        number = files[-1][0] + 1 if files else 1
        claim = Claim(stage.key, stage.kind, stage.name, number, self._me)
        if not self._create(claim):
            return False
        with self._lock:
            self._held[stage.key] = claim
            self._paces[stage.key] = Pace()
        return True

    def release(self, key: str) -> None:
        """Give up a claim, because the work is done or will not be done by this
        process."""
        with self._lock:
            claim = self._held.pop(key, None)
        if claim:
            for number, path in self._files(key):
                if number <= claim.number:
                    path.unlink(missing_ok=True)

    def say(self, key: str, done: int, total: int, note: str) -> None:
        """Let others see how far the work on a claimed stage is, at the next sign of
        life."""
        with self._lock:
            claim = self._held.get(key)
            if claim:
                left = self._paces[key].left(done, total)
                self._held[key] = replace(claim, done=done, total=total, note=note, left=left)

    def clear(self, keys: Collection[str] | None = None) -> None:
        """Remove what dead processes left of claims on these stages, which are done;
        None for all."""
        for key, _, path in list(self._all()):
            if (keys is None or key in keys) and not self._is_alive(path):
                path.unlink(missing_ok=True)

    def under_way(self) -> list[Claim]:
        """All claims of the folder whose holders live, as far as this process can
        tell."""
        newest: dict[str, Path] = {}
        for key, _, path in sorted(self._all()):
            newest[key] = path
        return [
            claim for path in newest.values() if self._is_alive(path) and (claim := _parse(read_if_file(path) or b""))
        ]

    def _files(self, key: str) -> list[tuple[int, Path]]:
        """Number and file of each claim on a stage, in order."""
        return sorted((number, path) for other, number, path in self._all() if other == key)

    def _all(self) -> Iterator[tuple[str, int, Path]]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self.folder):
                key, _, rest = name.partition(".")
                number, _, suffix = rest.partition(".")
                if suffix == "json" and number.isdecimal():
                    yield key, int(number), self.folder / name

    def _is_alive(self, path: Path) -> bool:
        content = read_if_file(path)
        if content is None:
            return False
        claim = _parse(content)
        if claim and claim.holder.is_here:
            return claim.holder.is_alive
        # None is what no file says: one that is empty is just being written, where there are no links.
        before, since = self._seen.get(path, (None, 0.0))
        if content != before:
            since = monotonic()
            self._seen[path] = content, since
        return monotonic() - since < PATIENCE

    def _create(self, claim: Claim) -> bool:
        """Write the file of a new claim, whole from the beginning; False if another
        process was faster."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(self.folder)
            with self._temporary_file(claim) as temporary:
                return _put(Path(temporary), self._path(claim))
        except OSError as error:
            raise InputError(f"--results {self.folder.parent}: cannot write there: {error.strerror}") from None

    def _keep_alive(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            with self._lock:
                held = list(self._held.values())
                for claim in held:
                    # A full disk or a network that is away must not end the work; at worst another takes it over.
                    with contextlib.suppress(OSError), self._temporary_file(claim, beat) as temporary:
                        os.replace(temporary, self._path(claim))

    def _path(self, claim: Claim) -> Path:
        return self.folder / f"{claim.key}.{claim.number}.json"

    @contextlib.contextmanager
    def _temporary_file(self, claim: Claim, beat: int = 0) -> Iterator[str]:
        """A file beside the claims that says what this one says; gone afterwards unless
        it was renamed."""
        content = {**vars(claim), "holder": vars(claim.holder), "beat": beat}
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            inherit_permissions(Path(temporary))
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _put(written: Path, path: Path) -> bool:
    """Give a file's content a name that no file has yet; False if one has.

    Raises:
        OSError: it cannot be written.
    """
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    except (OSError, AttributeError):  # a system or file system without links
        # Not whole from the beginning: to those who read it meanwhile it is damaged, whose holder may live.
        try:
            with open(path, "xb") as file:
                file.write(written.read_bytes())
        except FileExistsError:
            return False
    return True


def _parse(content: bytes) -> Claim | None:
    """The claim that a file's content stands for, or None if it is none: a machine lost
    power as it was written."""
    try:
        raw: Mapping[str, Any] = json.loads(content)
        known = {name: raw[name] for name in Claim.__dataclass_fields__ if name in raw}
        claim = Claim(**known | {"holder": Holder(**raw["holder"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    values = [(getattr(part, each.name), each.type) for part in (claim, claim.holder) for each in fields(part)]
    sound = all(type(value) is kind for value, kind in values) and 0 <= claim.left < LONGEST
    return claim if sound else None
