"""What two networks are both given: the shapes that fit both, and the values."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from suite.errors import InputError
from suite.export import zoo
from suite.inference import feeds, pictures, subjects
from suite.inference.feeds import GivenInputs, Input, Values
from suite.inference.subjects import Subject

# Inputs of a batch where nothing says how many.
AT_A_TIME = 8


def common_inputs(both: Sequence[Subject], given: GivenInputs, count: int | None = None) -> list[tuple[Input, ...]]:
    """What each of two subjects takes, with dimensions that fit both.

    Raises:
        InputError: they do not take the same, a dimension is not known, or `given` does
            not fit them (see `given_to_each`).
    """
    each_given = given_to_each(both, given)
    batch = None if given.shapes or given.values else min(count or AT_A_TIME, AT_A_TIME)
    for graph in (subject.graph for subject in both if subject.graph):
        fixed = [slot.dimensions[0] for slot in graph.inputs if slot.dimensions]
        batch = next((side for side in fixed if isinstance(side, int)), batch)
    found = []
    for (subject, said), (other, theirs) in zip(
        zip(both, each_given, strict=True), zip(both[::-1], each_given[::-1], strict=True), strict=True
    ):
        if subject.graph:
            found.append(subjects.resolve_inputs(subject.graph, said, batch))
        elif subject.network is None:
            if other.graph is None:
                raise InputError(f"{subject.name}: a module is compared with an ONNX file, which says what it takes")
            found.append(subjects.resolve_inputs(other.graph, theirs, batch))
        else:
            of_other = subjects.resolve_inputs(other.graph, theirs, batch) if other.graph else ()
            found.append(_inputs_of_model(subject.network, said, batch, of_other))
    shapes = [[each.shape for each in in_order(taken, found[0])] for taken in found]
    if shapes[0] != shapes[1]:
        named = " and ".join(
            f"{one.name} takes {_format_inputs(taken)}" for one, taken in zip(both, found, strict=True)
        )
        raise InputError(f"{named}: not the same")
    return found


def _inputs_of_model(
    network: zoo.Network, given: GivenInputs, batch: int | None, of_other: tuple[Input, ...]
) -> tuple[Input, ...]:
    """What a network of timm takes: as the other one has it, or `given` says; a network
    may be run on another size of images than its usual one."""
    (usual,) = subjects.image_input(network, batch or 1)
    array = given.values.get("input")
    wanted = given.shapes.get("input") if array is None else array.shape
    if wanted is None and len(of_other) == 1:
        wanted = of_other[0].shape
        if len(wanted) != 4 or wanted[1] != usual.shape[1]:
            return (usual,)
    if wanted is None:
        return (usual,)
    type_ = usual.type if array is None else array.dtype.name
    if len(wanted) != 4 or wanted[1] != usual.shape[1] or type_ != usual.type:
        legal = "x".join(map(str, usual.shape[1:]))
        said = f"{type_} {feeds.format_shape(wanted)}"
        raise InputError(f"{given.path or '--input'}: {network.model} takes float32 Nx{legal}, not {said}")
    return (Input("input", usual.type, tuple(wanted)),)


def given_to_each(both: Sequence[Subject], given: GivenInputs) -> list[GivenInputs]:
    """What is given to each of two subjects, arrays by its own names of inputs. A file
    of arrays has the names of one of the two; where the other's are others, arrays are
    given to it by place.

    Raises:
        InputError: neither has an input of some name, or a file of arrays lacks one.
    """
    names = [_names(subject, other) for subject, other in (both, both[::-1])]
    feeds.require_known(given, (*names[0], *names[1]))
    if not given.path or len(names[0]) != len(names[1]):  # which is not the same, as is said elsewhere
        return [given, given]
    held = set(given.values)
    named_as = next((place for place in (0, 1) if held >= set(names[place])), None)
    if named_as is None:
        nearest = max((0, 1), key=lambda place: len(held & set(names[place])))
        lacking = ", ".join(repr(name) for name in names[nearest] if name not in held)
        has = ", ".join(sorted(held))
        raise InputError(
            f"{given.path}: has no array for input {lacking} of {both[nearest].name}, only {has}; give one for each "
            f"input ({', '.join(names[nearest])})"
        )
    if more := held - set(names[named_as]):
        raise InputError(
            f"{given.path}: has arrays by the names of both, and {', '.join(sorted(more))} would not be used; "
            f"give only those of one of the two, as {', '.join(names[named_as])}"
        )
    if set(names[0]) == set(names[1]):
        return [given, given]
    arrays = [given.values[name] for name in names[named_as]]
    return [replace(given, values=dict(zip(each, arrays, strict=True))) for each in names]


def _names(subject: Subject, other: Subject) -> tuple[str, ...]:
    """Names of what it takes; a module has those of the file that it is compared
    with."""
    if subject.network is not None:
        return ("input",)
    graph = subject.graph or other.graph
    return tuple(slot.name for slot in graph.inputs) if graph else ()


def in_order(taken: Sequence[Input], like: Sequence[Input]) -> list[Input]:
    """Inputs in the order of others, if they have the same names; else as they are."""
    named = {each.name: each for each in taken}
    same = named.keys() == {each.name for each in like}
    return [named[each.name] for each in like] if same else list(taken)


def _format_inputs(taken: Sequence[Input]) -> str:
    return ", ".join(f"{each.name} {feeds.format_shape(each.shape)}" for each in taken) or "nothing"


def random_batches(taken: Sequence[Input]) -> Iterator[Values]:
    """Seeded random values, batch after batch, without end."""
    seed = 0
    while True:
        yield feeds.random_values(taken, seed)
        seed += 1


def from_images(
    network: zoo.Network, taken: Sequence[Input], files: list[Path], whole: bool = False
) -> Iterator[Values]:
    """Images as the network's configuration asks for them, in batches as the inputs
    have them; with `whole` the last ones are left out if they fill none."""
    (image,) = taken
    for batch in pictures.batches_of_files(network, files, image.shape):
        if not whole or len(batch) == image.shape[0]:
            yield {image.name: batch}
