"""Compare the outputs of any two files or models, and find where they first differ."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from suite import env
from suite.errors import InputError, first_line
from suite.export import graphs, zoo
from suite.inference import agreement, feeds, model_files, names, nodewise, pictures, shared_inputs, subjects
from suite.inference.agreement import Comparison, Side
from suite.inference.feeds import GivenInputs, Input, Values
from suite.inference.subjects import Subject
from suite.registry import ORT

# ImageNet's, by which most networks of images were trained.
_USUAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def find_pair(
    source: str, against: str | None, weights: str | None, model: str | None, modules: tuple[str, ...]
) -> tuple[Subject, Subject | None] | None:
    """What the options of `parity` ask to compare.

    Args:
        source: a file, model or run.
        against: the other one, if it is named.
        weights: what the file `source` was exported from, if that is named: a run, a
            model, or a file of weights alone, which is of `model` if that is named.
        modules: that register other models.

    Returns:
        What differences are measured against, and the other one, None if that is to be
        exported first; or None for a file or network of this project, which is compared
        on test images.

    Raises:
        InputError: they are not there, or the options do not fit together.
    """
    alone = weights is not None and weights.endswith(".safetensors") and not Path(weights).is_dir()
    if weights is not None and against is not None:
        raise InputError("--weights and --against cannot be combined; give one of them")
    if model is not None and not alone:
        raise InputError("--model is only for --weights FILE.safetensors")
    if weights is not None and not source.endswith(".onnx"):
        raise InputError(f"--weights {weights} is only for ONNX files; {source} is not one")
    path, other = Path(source), None
    if against is not None:
        return subjects.find(against, modules), subjects.find(source, modules)
    if weights is not None:
        if alone:
            return subject_of_weights(path, Path(weights), model, modules), subjects.find(source)
        if not Path(weights.removeprefix(zoo.LOCAL)).is_dir():
            return None
        first, other = subjects.find(weights, modules), subjects.find(source)
    elif source.endswith(".onnx") and not path.is_dir():
        if not path.is_file():
            raise InputError(f"{source}: no such file")
        stated = model_of_file(path)
        return None if stated is None else (subjects.find(stated, modules), subjects.find(source))
    else:
        first = subjects.find(source, modules)
    ours = first.network is None or first.network.ours
    return None if ours else (first, other)


def compare_subjects(
    first: Subject,
    second: Subject,
    given: GivenInputs,
    data: Path | None,
    count: int | None,
    provider: str,
    tolerance: float,
    scratch: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    runtime: str = ORT,
) -> Comparison:
    """Compare two subjects on the same inputs.

    Args:
        first: what differences are measured against.
        second: the other one.
        given: what the user says of inputs.
        data: a folder of images, or an .npz file; None for values that are drawn.
        count: how many inputs; None for as many as take a minute.
        provider: that files are run on.
        tolerance: greatest difference as a share of scale, beyond which the first node
            that departs is looked for.
        scratch: an empty folder.
        progress: told what is done, and how many inputs.
        runtime: that runs files, a key of `suite.registry.RUNTIMES`; in others than
            ONNX Runtime no node is looked for. What differences are measured against is
            run in ONNX Runtime if it is a file.

    Raises:
        InputError: they cannot be compared, or the inputs not be read.
        RuntimeError: one of them cannot be run.
    """
    if data is not None and data.suffix == ".npz":
        if given.path:
            raise InputError(f"--data {data}: a second .npz file beside --input {given.path}")
        given, data = replace(feeds.parse_inputs([str(data)]), shapes=given.shapes), None
    both = (first, second)
    taken = shared_inputs.common_inputs(both, given, count)
    found = Comparison("random inputs, of seeds 0, 1 and so on", of=None)
    if data is not None:
        found.words = f"images of {data}"
        batches = _images(both, taken[0], data, found)
    elif given.path:
        found.words = f"inputs of {given.path}"
        batches = iter([dict(shared_inputs.given_to_each(both, given)[0].values)])
    else:
        batches = shared_inputs.random_batches(taken[0])
    sides = []
    for subject, each, where in zip(both, taken, (ORT, runtime), strict=True):
        progress(0, 0, f"load {subject.name}")
        sides.append(_side(subject, each, provider, where))
    kept: list[Values] = []

    def noted() -> Iterator[Values]:
        for values in batches:
            if not kept:
                kept.append(values)
            yield values

    agreement.compare(sides[0], sides[1], noted(), found, count, progress)
    if found.differs(tolerance) and kept and runtime == ORT:
        progress(0, 0, "the first node that departs")
        found.departure = _departure(both, sides, kept[0], tolerance, scratch, found)
    return found


def check(first: Subject, second: Subject, given: GivenInputs, data: Path | None) -> None:
    """See, before anything is loaded, whether two subjects can be given the same
    inputs.

    Raises:
        InputError: they cannot.
    """
    if data is not None and not data.exists():
        raise InputError(f"--data {data}: no such file or folder; give a folder of images or an .npz file")
    if data is not None and data.suffix == ".npz":
        given = replace(feeds.parse_inputs([str(data)]), shapes=given.shapes)
    shared_inputs.common_inputs((first, second), given)


def _side(subject: Subject, taken: tuple[Input, ...], provider: str, runtime: str) -> Side:
    if subject.graph is not None:
        return replace(agreement.from_file(subject.graph, taken, provider, runtime), name=subject.name)
    if subject.module is not None:
        return agreement.from_model(subject.name, subject.module, taken)
    assert subject.network is not None  # for the type checker
    return agreement.from_model(subject.name, zoo.build(subject.network, subject.weights), taken)


def _images(
    both: tuple[Subject, Subject], taken: tuple[Input, ...], folder: Path, found: Comparison
) -> Iterator[Values]:
    if not folder.is_dir():
        raise InputError(f"--data {folder}: is not a folder; give a folder of images or an .npz file")
    if len(taken) != 1 or len(taken[0].shape) != 4:
        raise InputError(f"--data {folder}: {both[0].name} takes no images; give an .npz file or no --data")
    network = next((each.network for each in both if each.network), None)
    stated = next((known for each in both if each.graph and (known := _stated_statistics(each.graph))), None)
    if network is None:
        if stated is None:
            found.notes.append("no mean and std are stated: images are normalised by those of ImageNet")
        network = zoo.Network(both[0].name, None, False, {}, stated or _USUAL)
    files = pictures.list_images(folder)
    found.of = len(files)
    fixed = any(
        each.graph and each.graph.inputs[0].dimensions and isinstance(each.graph.inputs[0].dimensions[0], int)
        for each in both
    )
    return shared_inputs.from_images(network, taken, files, whole=fixed)


def _stated_statistics(graph: graphs.Graph) -> dict[str, object] | None:
    """The mean and std that a file of this project states."""
    props = {entry.key: entry.value for entry in graph.model.metadata_props}
    try:
        return {name: tuple(map(float, json.loads(props[name]))) for name in ("mean", "std")}
    except (KeyError, ValueError, TypeError):
        return None


def _departure(
    both: tuple[Subject, Subject], sides: list[Side], values: Values, tolerance: float, scratch: Path, found: Comparison
) -> dict[str, object] | None:
    """The first node, where both are graphs with the same names of inputs; a model is
    exported once more for this."""
    files = [side.file for side in sides]
    if not any(files):
        return None
    try:
        for place, subject in enumerate(both):
            if files[place] is None and subject.network is not None:
                shape = sides[place].inputs[0].shape[1:]
                network, size = subject.network, shape[-1]
                maker = model_files.Maker(
                    subject.name, network, scratch, weights=subject.weights, plain=True, size=size
                )
                files[place] = maker.file("fp32", "cpu")
        a, b = files
        if a is None or b is None:  # of a module there is no graph
            return None
        named = [{slot.name for slot in graphs.read(file).inputs} for file in (a, b)]
        if named[0] != named[1]:
            return None
        known = {next(iter(named[0])): next(iter(values.values()))} if len(values) == 1 else values
        return nodewise.first_difference_of_files(a, b, known, tolerance, env.available_cores())
    except Exception as error:  # whatever it is, the comparison itself stands
        found.notes.append(f"the first node that departs cannot be looked for: {first_line(error)}")
        return None


def model_of_file(path: Path) -> str | None:
    """The model of timm's, and not of this project, that a file says it was exported
    from with initial weights; None for a file of this project, and for what is no ONNX
    file.

    Raises:
        InputError: it is an ONNX file that does not say what it was made from.
    """
    try:
        graph = graphs.read(path)
    except InputError:
        return None
    props = {entry.key: entry.value for entry in graph.model.metadata_props}
    model, trained = props.get("model"), props.get("trained")
    if model is None or (model not in names.our_models() and trained != "false"):
        what = "does not say what it was made from, which --weights FILE.safetensors --model MODEL names"
        if model is not None and trained == "true":
            what = "made from weights that were given, which --weights FILE.safetensors|FOLDER names"
        raise InputError(f"{path}: {what}; or --against FILE|MODEL|RUN names what to compare it with")
    theirs = model.partition(".")[0] in names.timm_models() and model not in names.our_models()
    return model if theirs else None


def export_subject(network: Subject, scratch: Path, provider: str, say: Callable[[str], None]) -> Subject:
    """The export of a model as a subject, to compare it with."""
    assert network.network is not None  # for the type checker
    path = model_files.Maker(network.name, network.network, scratch, say).file("fp32", provider)
    return replace(subjects.find(str(path)), name=f"its ONNX file for {provider}")


def subject_of_weights(path: Path, weights: Path, model: str | None, modules: Sequence[str] = ()) -> Subject:
    """The network that a file was exported from with given weights.

    Args:
        path: the file, which states the model's name and arguments.
        weights: a file of safetensors.
        model: its name; None for what the file states.
        modules: to import beforehand, which register their models with timm.

    Raises:
        InputError: there is no such file, it does not say which model it is of, or
            there is no such model.
    """
    if not weights.is_file():
        raise InputError(f"--weights {weights}: no such file")
    props = {entry.key: entry.value for entry in graphs.read(path).model.metadata_props}
    stated = props.get("model")
    if model is None and stated is None:
        raise InputError(f"{path}: does not say which model it was exported from; --model MODEL names it")
    name, where = (model, "--model") if model is not None else (str(stated), f"{path}: its model")
    zoo.import_modules(modules)
    if not zoo.is_known(name):  # and not looked for elsewhere, whatever the file says
        hint = names.suggest_names(name, names.our_models() | names.timm_models())
        raise InputError(f"{where} {name!r}: neither this project nor timm has it, nor what --import names{hint}")
    arguments: object = {}
    if name == stated:
        try:
            arguments = json.loads(props.get("arguments", "{}"))
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        raise InputError(f"{path}: its arguments are not those of a model; --model MODEL names one")
    zoo.check_arguments(arguments, f"{path}: arguments")
    return Subject(f"{name} with {weights}", network=replace(zoo.from_name(name), arguments=arguments), weights=weights)
