"""Weights of the backbones: the published files by name, and local files; nothing in a file is ever executed."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_BASE_URL = "https://download.pytorch.org/models/"


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file or the published name and says what to do."""


@dataclass(frozen=True)
class PublishedWeights:
    """A published ImageNet file: `file` carries the first 8 hex digits of its sha256, checked after the download.

    top1_error: percent, one 224 px crop, as published. mean, std: of RGB in 0..1, what the network expects.
    """

    architecture: str
    file: str
    top1_error: float
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


PUBLISHED = {
    "torchvision/resnet18.v1": PublishedWeights("resnet18", "resnet18-f37072fd.pth", 30.24),
    "torchvision/resnet34.v1": PublishedWeights("resnet34", "resnet34-b627a593.pth", 26.69),
    "torchvision/resnet50.v1": PublishedWeights("resnet50", "resnet50-0676ba61.pth", 23.87),
    "torchvision/resnet50.v2": PublishedWeights("resnet50", "resnet50-11ad3fa6.pth", 19.14),
    "torchvision/resnet101.v1": PublishedWeights("resnet101", "resnet101-63fe2227.pth", 22.63),
    "torchvision/resnet101.v2": PublishedWeights("resnet101", "resnet101-cd907fc2.pth", 18.11),
    "torchvision/resnet152.v1": PublishedWeights("resnet152", "resnet152-394f9c45.pth", 21.69),
    "torchvision/resnet152.v2": PublishedWeights("resnet152", "resnet152-f82ba261.pth", 17.72),
}
"""All of torchvision, a bottleneck's stride in the 3x3. v1 is the recipe nearest to the paper's, v2 a newer, longer one."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did: where from, how many tensors went in, and the classifier's tensors that did not.

    skipped: names that only one side has (left out, or still as initialised) or that differ in size.
    """

    source: str
    matched: int
    skipped: tuple[str, ...]


def load_weights(net: nn.Module, weights: str | Path) -> LoadReport:
    """Fill `net` from a published name (see PUBLISHED) or a local .pth, .pt or .safetensors file.

    A published file is downloaded, and its checksum verified, only when asked for by its name; afterwards torch's hub
    cache has it. Wrappings ({"state_dict": ...}, "module.", "backbone.") are taken off. The classifier `fc.*` may be
    missing or of another size: it is skipped and reported. Anything else missing, unexpected or mis-shaped raises
    WeightsError, naming the architecture the file looks like; so does a published file for a network whose stride is
    elsewhere, which would fit and be wrong. The network is then unchanged.
    """
    source = str(weights)
    if source in PUBLISHED and _strides_in_1x1(net):
        raise WeightsError(f"{source} was trained with stride_placement='torchvision'; this network was built with 'original'")
    tensors = _download(source) if source in PUBLISHED else _read(source)
    tensors = {re.sub(r"^(module\.|backbone\.)+", "", name): tensor for name, tensor in tensors.items()}
    own = net.state_dict()
    classifier = [name for name in {**tensors, **own} if name.startswith("fc.")]
    skipped = [name for name in classifier if name not in own or name not in tensors or own[name].shape != tensors[name].shape]
    absent = [name for name in own if name not in tensors and not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in own and name not in skipped and not name.endswith("num_batches_tracked")]
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and name not in skipped and tensors[name].shape != own[name].shape
    ]
    if absent or extra or misshapen:
        hint = _hint(tensors, own)
        parts = [
            f"{what} {len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for what, names in (("missing", absent), ("unexpected", extra), ("of another shape", misshapen))
            if names
        ]
        raise WeightsError(f"{source} does not fit this network.{hint} Tensors {'; '.join(parts)}")
    used = {name: tensors[name] for name in own if name in tensors and name not in skipped}
    net.load_state_dict(used, strict=False)
    return LoadReport(source, len(used), tuple(skipped))


def _download(name: str) -> dict[str, Tensor]:
    published = PUBLISHED[name]
    url = _BASE_URL + published.file
    cached = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise WeightsError(
            f"{name}: could not download {url} ({error}). Without a network, put that file at {cached}, "
            "or give the path of a local weights file"
        ) from None
    except (*_DAMAGED, pickle.UnpicklingError) as error:
        raise WeightsError(f"{name}: {cached} is damaged ({_first_line(error)}); delete it where it exists and try again") from None


def _read(source: str) -> dict[str, Tensor]:
    path = Path(source)
    if not path.is_file():
        near = get_close_matches(source, PUBLISHED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise WeightsError(f"no weights file {source}; {hint}Published names are: {', '.join(PUBLISHED)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path} holds objects other than tensors{f' ({found[1]})' if found else ''}; it was not loaded, because loading "
            "could run code. Save the weights with torch.save(net.state_dict(), ...) or as .safetensors"
        ) from None
    except (*_DAMAGED, SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or not a weights file ({_first_line(error)})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} is not a state dict: expected a mapping of names to tensors")
    return content


_DAMAGED = (RuntimeError, EOFError, ValueError, KeyError)
"""What torch.load raises for a file that is cut short or of another kind."""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def _strides_in_1x1(net: nn.Module) -> bool:
    """Whether a bottleneck of `net` steps in its first 1x1 convolution, as the paper's do."""
    return any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        for name, module in net.named_modules()
        if name.endswith(".conv1")
    )


def _hint(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Return what the file is likely to be, as a sentence that starts with a blank, or nothing."""
    file_looks_like = _recognise(tensors)
    if file_looks_like and file_looks_like == _recognise(own) and "bn1.running_mean" in tensors and "bn1.running_mean" not in own:
        return " The file has batch norm statistics: build the network with norm='frozen' or 'batch'."
    return f" The file looks like {file_looks_like}." if file_looks_like else ""


_DEPTHS = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}


def _recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the residual network whose names these are, or None."""
    blocks = {match.group(1, 2) for name in tensors if (match := re.match(r"layer([1-4])\.(\d+)\.", name))}
    depths = tuple(sum(layer == str(number) for layer, _ in blocks) for number in range(1, 5))
    name = _DEPTHS.get(depths)
    if name == "resnet34" and any(re.match(r"layer1\.0\.conv3\.", key) for key in tensors):
        return "resnet50"
    return name
