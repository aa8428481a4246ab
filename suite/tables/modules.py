"""Modules of a user's own, which register models with timm: found, imported, and told
apart by the text of their files.

A name that ends in .py is a path; any other is imported as Python does.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

from suite.errors import InputError, describe_error

# What a module may have beside it that has versions of its own.
_KNOWN = ["models", "suite"]


def load(name: str) -> None:
    """Import a module.

    Raises:
        InputError: there is none, or it cannot be imported.
    """
    try:
        if name.endswith(".py"):
            _load_file(_file(name))
        else:
            importlib.import_module(name)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever its author has written
        raise InputError(f"--import {name}: cannot be imported: {describe_error(error)}") from None


def _load_file(path: Path) -> None:
    there = sys.modules.get(path.stem)
    if there is not None:
        if Path(getattr(there, "__file__", None) or "") == path:
            return
        raise InputError(f"--import {path}: another module called {path.stem} is imported already; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # of a name that ends in .py there is one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where timm looks for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _file(name: str) -> Path:
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"--import {name}: no such file")
    return path


@cache
def files(name: str) -> tuple[Path, ...]:
    """The files of a module in sorted order: of a package all that are in it, else its
    own and those that it imports from the same folder. None of them is run, but for the
    package that it is in.

    Raises:
        InputError: there is no such module.
    """
    if name.endswith(".py"):
        path = _file(name)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except Exception as error:  # of a package that cannot be imported
            raise InputError(f"--import {name}: cannot be found: {describe_error(error)}") from None
        if spec is None:
            raise InputError(
                f"--import {name}: no module of this name; give an importable name or the path of a .py file"
            )
        package = importlib.util.find_spec(name.partition(".")[0])
        if package and package.submodule_search_locations:
            return tuple(
                sorted(file for place in package.submodule_search_locations for file in Path(place).rglob("*.py"))
            )
        if spec.origin is None:
            return ()
        path = Path(spec.origin)
    if path.suffix != ".py":
        return (path,)
    finder = ModuleFinder([str(path.parent)], excludes=_KNOWN)
    try:
        finder.run_script(str(path))
    except SyntaxError as error:
        raise InputError(f"--import {name}: cannot be imported: {describe_error(error)}") from None
    named: list[str | None] = [getattr(module, "__file__", None) for module in finder.modules.values()]
    found = {path} | {Path(file).absolute() for file in named if file}
    return tuple(sorted(found))


@cache
def digest(name: str) -> str:
    """SHA-256 of the text of a module's `files`; line endings do not count."""
    total = hashlib.sha256()
    for file in files(name):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        total.update(hashlib.sha256(text).digest())
    return total.hexdigest()


def digests(names: Sequence[str]) -> frozenset[str]:
    """Of each module, and of all together, as `source_of` may say."""
    return frozenset({digest(name) for name in names} | ({_digest_of_all(names)} if names else set()))


def source_of(file: str | None, names: Sequence[str]) -> str:
    """The digest of the one of some modules that a file is of, or of all together if it
    is of none of them."""
    for name in names:
        if file is not None and Path(file).absolute() in files(name):
            return digest(name)
    return _digest_of_all(names)


def _digest_of_all(names: Sequence[str]) -> str:
    return hashlib.sha256("".join(map(digest, sorted(names))).encode()).hexdigest()
