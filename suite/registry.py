"""What has a name on the command line and in records: data sets, execution providers,
runtimes, forms of ONNX files.

One entry each. Valid values, help texts and tests are derived from these, so that a new
thing is a new entry and the function that reads or runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class DataSet:
    """A data set that networks are trained and tested on.

    Attributes:
        label: its name in tables and plots.
        classes: how many it has.
        mean, std: of each channel of the training images, on the 0-255 scale.
        reader: key in `_READERS` of `suite.data.sets`; "digits" for the embedded ones.
        images: how many for training and for test the whole set has. A file that was
            cut short at the end of an image is read like a whole one, and a table then
            says so. None for the embedded ones, which cannot be cut.
        stand_in: the embedded data set that is used where no path is given; None for
            the embedded ones.
    """

    label: str
    classes: int
    mean: Triple
    std: Triple
    reader: str
    images: tuple[int, int] | None = None
    stand_in: str | None = None


# CIFAR and ImageNet: the constants of fb.resnet.torch (datasets/*.lua). SVHN and digits: measured from the training
# images, to one decimal.
DATA_SETS = {
    "cifar10": DataSet(
        "CIFAR-10", 10, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), "cifar", (50_000, 10_000), "digits10"
    ),
    "cifar100": DataSet(
        "CIFAR-100", 100, (129.3, 124.1, 112.4), (68.2, 65.4, 70.4), "cifar", (50_000, 10_000), "digits100"
    ),
    "imagenet": DataSet(
        "ImageNet",
        1000,
        (0.485 * 255, 0.456 * 255, 0.406 * 255),
        (0.229 * 255, 0.224 * 255, 0.225 * 255),
        "class folders",
        (1_281_167, 50_000),
        "digits1000",
    ),
    "svhn": DataSet("SVHN", 10, (111.6, 113.2, 120.6), (50.5, 51.3, 50.2), "svhn", (73_257, 26_032), "digits10"),
    "digits10": DataSet("embedded digits, 10 classes", 10, (128.4, 128.6, 127.4), (69.5, 74.0, 67.9), "digits"),
    "digits100": DataSet("embedded digits, 100 classes", 100, (126.9, 127.2, 127.8), (70.6, 77.4, 68.9), "digits"),
    "digits1000": DataSet("embedded digits, 1000 classes", 1000, (126.9, 127.3, 127.4), (72.4, 80.5, 71.3), "digits"),
}

# The embedded data set that stands in for each that is read from a path.
STAND_INS = {name: each.stand_in for name, each in DATA_SETS.items() if each.stand_in}


def stand_in(name: str) -> str | None:
    """The embedded data set that is used for one where no path is given: itself if it
    is embedded, None for one that is not of the suite."""
    return STAND_INS.get(name, name if name in DATA_SETS else None)


def what_is_there(name: str, train: int, test: int) -> str | None:
    """How much there is of a data set that is not whole, in words; None of one that is,
    or of which it is not known how large it is."""
    known = DATA_SETS.get(name)
    if known is None or known.images in (None, (train, test)):
        return None
    return f"{name} of {train} training and {test} test images, not all of it"


def label_of(name: str) -> str:
    """What a data set is called in tables and plots; one that is not of the suite has
    its name."""
    return DATA_SETS[name].label if name in DATA_SETS else name


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        name: as ONNX Runtime has it.
        graph: which graph it is given where nothing else is asked for, "rewritten" for
            the CPU provider or "plain", the default export. The rewrites are for the
            CPU provider, and make a CReLU network slower on the CUDA provider.
        device: torch's name of the device that it computes on.
        lacks: forms that it cannot run, and why: no file is made and nothing timed, and
            a table says so.
    """

    name: str
    graph: Literal["rewritten", "plain"]
    device: Literal["cpu", "cuda"]
    lacks: Mapping[str, str] = field(default_factory=dict)


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "rewritten", "cpu"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "plain",
        "cuda",
        lacks={
            "int8": "ONNX Runtime's CUDA provider has no int8 convolution, "
            "and no DequantizeLinear with a scale a filter"
        },
    ),
    "tensorrt": Provider("TensorrtExecutionProvider", "plain", "cuda"),
}


def why_unsupported(provider: str, form: str) -> str | None:
    """Why an execution provider cannot run files of a form (a key of `FORMS`), or None
    if it can."""
    return PROVIDERS[provider].lacks.get(form) if provider in PROVIDERS else None


Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Form:
    """A form of a network's ONNX file: of each network there may be one file in each
    form.

    A form is a precision and a graph. The graph is what PyTorch's exporter writes, the
    default export, or that rewritten for ONNX Runtime's CPU provider (see
    `suite.export.rewrite`); every provider has one of the two that it is usually given
    (`Provider.graph`). So one name tells a form: `--forms`, tables and, under
    `precision`, the records of parities and latencies have the keys of `FORMS`. Where a
    precision is named alone, as by `--precision`, the graph is the provider's, and
    `--plain` asks for the default export.

    Attributes:
        precision: of weights and activations.
        is_default_export: whether the graph is the default export, whatever the
            provider.
    """

    precision: Precision
    is_default_export: bool = False


FORMS = {
    "fp32": Form("fp32"),
    "plain": Form("fp32", is_default_export=True),
    "fp16": Form("fp16"),
    "int8": Form("int8"),
}
# Reduced precisions: those that a file has instead of float32.
REDUCED: tuple[Precision, ...] = ("fp16", "int8")


@dataclass(frozen=True)
class Runtime:
    """What can run a network.

    Attributes:
        label: its name in plots and sentences.
        short: its name in headings of columns.
        library: the package that it is of, and whose version it has.
            `suite.inference.in_LIBRARY` loads a network.
        providers: what it runs on; of ONNX Runtime its execution providers, of others
            the device.
        forms: of ONNX files that it runs; none of one that runs a network from its
            weights, in float32.
        extra: of this project, which installs it; None if it is always installed.
        brief: its name in a terminal, where room is scarce; empty if that is
            `short`.
    """

    label: str
    short: str
    library: Literal["onnxruntime", "torch", "openvino"]
    providers: tuple[str, ...]
    forms: tuple[str, ...] = ()
    extra: str | None = None
    brief: str = ""

    @property
    def reads_files(self) -> bool:
        """Whether it runs ONNX files."""
        return bool(self.forms)


ORT = "onnxruntime"

RUNTIMES = {
    ORT: Runtime("ONNX Runtime", "ORT", "onnxruntime", tuple(PROVIDERS), tuple(FORMS)),
    "torch": Runtime("torch", "torch", "torch", ("cpu", "cuda")),
    "torch.compile": Runtime("torch.compile", "torch.compile", "torch", ("cpu", "cuda")),
    # On a CPU OpenVINO computes float16 files in another precision, so that there is nothing to time under that name.
    "openvino": Runtime("OpenVINO", "OpenVINO", "openvino", ("cpu",), ("fp32", "plain", "int8"), "openvino", "OV"),
    "openvino.default": Runtime(
        "OpenVINO in its default precision",
        "OpenVINO default",
        "openvino",
        ("cpu",),
        ("fp32", "plain", "int8"),
        "openvino",
        "OV default",
    ),
}
