"""Write the weights and the ONNX files, in each precision, of a model that a user
names."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from suite.errors import InputError
from suite.export import zoo
from suite.files import name_full_disk
from suite.inference import reduced
from suite.registry import PROVIDERS
from suite.results.folder import folder_beside

if TYPE_CHECKING:
    from torch import nn


class Maker:
    """Makes what is asked for, each file once, in a folder of its own.

    Args:
        name: what the user calls the model.
        network: what it is.
        folder: for the files.
        say: told what is being done.
        weights: a file of safetensors with its weights; None for those of its folder,
            or initial ones.
        plain: the default export, whatever the provider.
        calibration: batches of images for int8 and float16; by default embedded
            ones.
    """

    def __init__(
        self,
        name: str,
        network: zoo.Network,
        folder: Path,
        say: Callable[[str], None] = lambda text: None,
        weights: Path | None = None,
        plain: bool = False,
        size: int | None = None,
        calibration: list[Any] | None = None,
    ) -> None:
        self.name, self.network, self._folder, self._say = name, network, folder, say
        self._weights, self._plain, self.calibration = weights, plain, calibration
        channels, height, width = network.input_size
        self.shape = (channels, size or height, size or width)
        self.said: dict[Path, dict[str, Any]] = {}

    @cached_property
    def model(self) -> "nn.Module":
        """The network in evaluation mode on the CPU."""
        self._say(f"make {self.name}")
        return zoo.build(self.network, self._weights)

    @property
    def trained(self) -> bool:
        """Whether its weights are a user's, not the initial ones."""
        return self._weights is not None or self.network.folder is not None

    @cached_property
    def macs(self) -> int | None:
        """Multiply-accumulates of one input, of the network itself, whichever graph its
        file has."""
        from suite.export.generic import cost_of

        return cost_of(self.model, self.shape)["macs"]

    def weights(self) -> Path:
        """A folder in timm's local layout."""
        if self.network.folder is not None and self._weights is None:
            return self.network.folder
        folder = self._folder / "weights"
        if not folder.is_dir():
            folder.mkdir()
            zoo.save(self.network, self.model, folder)
        return folder

    def file(self, precision: str, provider: str) -> Path:
        """The ONNX file in a precision, in the graph that suits a provider; what there
        is to say of it is in `said`.

        Raises:
            RuntimeError: it cannot be made.
            InputError: the images for it cannot be read.
        """
        graph = "plain" if self._plain else PROVIDERS[provider].graph
        kind = "unsigned" if provider == "cpu" else "symmetric"
        last = f"-{kind}" if precision == "int8" else ""
        path = self._folder / f"{precision}-{graph}{last}.onnx"
        if path in self.said:
            return path
        if precision == "fp32":
            self.said[path] = self._export(path, graph == "rewritten")
            return path
        whole = self.file("fp32", provider)
        self._say(f"{precision} of {self.name}")
        self.said[path] = reduced.of_fp32(self.said[whole]) | self._convert(whole, path, precision, kind)
        return path

    def _export(self, path: Path, rewrite: bool) -> dict[str, Any]:
        self._say(f"export {self.name}")
        if self.network.ours:
            from suite.export import exporter

            if self.shape[1] != self.shape[2]:
                raise InputError(f"{self.name}: takes squares")
            found = exporter.export(self.weights(), self.shape[1], path, self._metadata(rewrite), rewrite)
            return dict(to_builtins(found))
        from suite.export import generic

        return generic.export(self.model, self.shape, path, self._metadata(rewrite), rewrite)

    def _metadata(self, rewrite: bool) -> dict[str, str]:
        import json

        from suite import env

        stated = {"model": self.network.model, "trained": str(self.trained).lower()}
        stated["arguments"] = json.dumps(dict(self.network.arguments))
        stated |= {"form": "rewritten" if rewrite else "plain", "versions": json.dumps(env.versions())}
        for name in ("mean", "std", "label_names"):
            if self.network.described.get(name):
                stated[name] = json.dumps(self.network.described[name])
        return stated

    def _convert(self, whole: Path, out: Path, precision: str, kind: str) -> dict[str, Any]:
        """Write `whole` in reduced precision.

        Returns:
            Of the file that was written `opset`, `operators`, `bytes`,
            `difference_from_torch` if `whole` has it, and `difference_from_fp32` on the
            calibration images; `calibration` in words, and `warnings`.
        """
        from suite import env
        from suite.export import exporter, generic
        from suite.export import precision as converting
        from suite.inference import pictures

        if self.calibration is None:
            self.calibration = list(pictures.batches_of_digits(self.network, pictures.CALIBRATION, self.shape))
            words = f"{pictures.CALIBRATION} embedded images of digits"
        else:
            words = f"{sum(map(len, self.calibration))} images given"
        images, threads = self.calibration, env.available_cores()
        said: dict[str, Any] = {"calibration": words}
        warnings = list(self.said[whole].get("warnings", ()))
        if precision == "int8":
            activations: Any = kind
            converting.to_int8(whole, out, images, activations=activations, normprop=self.network.ours)
        else:
            converting.to_float16(whole, out)
            most = float(converting.FLOAT16.max)
            for node, value in converting.activation_magnitudes(whole, images[:1], threads).items():
                if not value <= most:  # nor if it is not a number
                    warnings.append(f"{node} gives values to {value:.3g}, and float16 holds {most:.0f} at most")
                    break
        of_whole = self.said[whole]
        if "difference_from_torch" in of_whole:
            apart = generic.difference_from_torch(self.model, out, self.shape, of_whole["batch"])
            said["difference_from_torch"] = apart
        said["difference_from_fp32"] = converting.difference(out, whole, images, threads)
        return said | dict(to_builtins(exporter.describe(out))) | {"warnings": warnings}


def export(
    name: str,
    network: zoo.Network,
    out: Path,
    precision: str,
    provider: str,
    plain: bool = False,
    size: int | None = None,
    weights: Path | None = None,
    images: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write any network of timm as an ONNX file, whole or not at all.

    Args:
        name: what the user calls it.
        network: what it is.
        out: the file.
        precision: "fp32", "fp16" or "int8".
        provider: which it is for.
        plain: the default export, without rewrites.
        size: side of an image in pixels; None for the network's own.
        weights: a file of safetensors; None for those of its folder, or initial ones.
        images: a folder of images that int8 is calibrated on and fp16 checked on; None
            for embedded ones.
        say: told what is being done.

    Returns:
        What `suite.export.generic.export` does, with `precision` and `form`, and what
        `Maker` adds.

    Raises:
        InputError: it cannot be made as asked for, or not be written.
        RuntimeError: there is no graph of it, or not in this precision.
    """
    from itertools import islice

    from suite.inference import deploy, pictures

    deploy.check(out, precision, provider)
    with folder_beside(out) as scratch, name_full_disk(out.parent):
        maker = Maker(name, network, scratch, say, weights, plain, size)
        if images is not None:
            files = pictures.list_images(images)[: pictures.MOST]
            read = pictures.batches_of_files(network, files, (pictures.AT_A_TIME, *maker.shape))
            maker.calibration = list(islice(read, pictures.MOST))
        path = maker.file(precision, provider)
        os.replace(path, out)
        graph = "plain" if plain else PROVIDERS[provider].graph
        weights_are = "given" if maker.trained else "initial"
        return {"weights": weights_are, "form": graph, "precision": precision} | maker.said[path]
