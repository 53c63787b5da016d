"""Weights of the backbones: the published files by name, and local files of many origins; nothing
in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import zipfile
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from backbones.backbone import Backbone, LoadReport
from backbones.catalogue import CAFFE, PUBLISHED, InputSpec, PublishedWeights
from backbones.files import read_safetensors, read_safetensors_metadata, write_safetensors
from backbones.restricted_pickle import ForbiddenPickleError, load_arrays
from backbones.weight_names import to_own_names

FORMAT = "backbones-1"
"""What a .safetensors file of `save_weights` calls itself in its metadata."""


MEAN_IMAGE = "input.mean_image"
"""The tensor of such a file that belongs to the input, not to the network."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file or the published name and says what
    to do.
    """


@dataclass(frozen=True)
class _File:
    """A weights file under our names. traits: what a network must agree on; input_spec: None where
    the file does not tell.
    """

    source: str
    naming: str
    tensors: dict[str, Tensor]
    traits: dict[str, str]
    input_spec: InputSpec | None


def load_weights(
    net: Backbone,
    weights: str | Path,
    *,
    input_spec: InputSpec | None = None,
    resize_classifier: bool = False,
) -> LoadReport:
    """Fill `net` from a published name (see PUBLISHED) or a local file, set `net.input_spec`, and
    return what was done.

    A published file is downloaded only when asked for by its name, into torch's hub cache; its
    checksum is verified, also when it is there already. Local files: .pth or .pt (state dicts, also
    inside {"state_dict": ...}, {"model": ...}), .safetensors (save_weights, timm, any), .pkl
    (Detectron, detectron2; see restricted_pickle). Names of torchvision, timm, the widely used
    CIFAR port, Detectron and detectron2 are known; so are the prefixes of wrappers.

    input_spec: what the file expects as input, where you know better. Without, the published entry,
    the file's own metadata or its names say; a name with "caffe" or "msra" in it means the authors'
    convention (BGR, stride in the 1x1); otherwise the network keeps the one it has.

    resize_classifier: give a network that has a classifier one for as many classes as the file's
    tells apart.

    The classifier may be missing, of another size, or not finite: it is skipped and reported.
    Anything else missing, unexpected, mis-shaped or not finite raises WeightsError, naming the
    architecture the file looks like; so does a file trained with another stride placement or
    shortcut padding, which would fit and be wrong. The network is then unchanged.
    """
    source = str(weights)
    if source in PUBLISHED:  # before anything is downloaded
        _require_same_traits(source, dict(PUBLISHED[source].traits), net.traits)
        _require_architecture(source, net)
    file = _published(source) if source in PUBLISHED else _local(Path(weights))
    _require_same_traits(file.source, file.traits, net.traits)
    tensors, own = file.tensors, net.state_dict()
    num_classes = _resized(net, own, tensors) if resize_classifier else None
    skipped = _skipped(own, tensors, net.head_prefix)
    used = {name: tensor for name, tensor in tensors.items() if name in own and name not in skipped}
    _require_fit(file, own, used, skipped)
    if any(tensor.is_meta for tensor in own.values()):
        raise WeightsError(
            f"the network has no memory for {source}: it was built on the meta device; call "
            "to_empty(device='cpu') first"
        )
    if num_classes is not None:
        net.reset_classifier(num_classes)
    net.load_state_dict(used, strict=False)
    expected = input_spec or file.input_spec
    net.input_spec = expected or net.input_spec
    net.load_report = LoadReport(file.source, file.naming, tuple(used), skipped, expected)
    return net.load_report


def _skipped(
    own: dict[str, Tensor], tensors: dict[str, Tensor], head_prefix: str
) -> dict[str, str]:
    """Name -> why it is not loaded, of tensors that need not be: of the classifier, and
    counters.
    """
    skipped = {}
    for name in {**own, **tensors}:
        is_head = name.startswith(head_prefix)
        if name.endswith("num_batches_tracked") and (name not in own or name not in tensors):
            kept = "not in the file; the counter keeps its value"
            skipped[name] = kept if name in own else "the network does not count batches"
        elif is_head and name not in tensors:
            skipped[name] = "not in the file; stays as initialised"
        elif is_head and name not in own:
            skipped[name] = "the network has no such layer"
        elif is_head and own[name].shape != tensors[name].shape:
            skipped[name] = (
                f"{tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the "
                "network; stays as initialised"
            )
        elif is_head and not tensors[name].isfinite().all():
            skipped[name] = "not finite in the file; stays as initialised"
    return skipped


def _resized(net: Backbone, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> int | None:
    """Give the classifier in `own` as many rows as the file's; return that number where it is
    another than the network's.
    """
    name = next(
        (name for name, module in net.named_modules() if module is net.get_classifier()), None
    )
    weight = tensors.get(f"{name}.weight")
    if weight is None or weight.dim() != 2 or len(weight) in (0, len(own[f"{name}.weight"])):
        return None
    for key in (f"{name}.weight", f"{name}.bias"):
        own[key] = own[key].new_empty((len(weight), *own[key].shape[1:]))
    return len(weight)


def save_weights(net: Backbone, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the weights of `net` as .safetensors, with the input they expect and what must agree,
    so that load_weights knows.

    metadata: more strings to keep beside them. The file appears in one step; an old one stays until
    then. Raises ValueError for a path that does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: give a name that ends in .safetensors")
    facts = {
        **(metadata or {}),
        "format": FORMAT,
        "traits": json.dumps(net.traits),
        "input_spec": net.input_spec.to_json(),
    }
    tensors = net.state_dict()
    if net.input_spec.mean_image is not None:
        tensors[MEAN_IMAGE] = net.input_spec.mean_image
    write_safetensors(path, tensors, facts)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what a .safetensors file says beside its tensors; nothing for a file that says
    nothing.

    Raises WeightsError for a file that is missing or no .safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    try:
        return read_safetensors_metadata(path)
    except Exception as error:
        raise WeightsError(
            f"{path} is not a readable .safetensors file ({_first_line(error)})"
        ) from None


# ---- where a file comes from ----


def _published(name: str) -> _File:
    published = PUBLISHED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                published.url, str(path), hash_prefix=published.sha256_prefix
            )
        except OSError as error:
            raise WeightsError(
                f"{name}: could not download {published.url} ({error}). Without a network, put "
                f"that file at {path}, or give the path of a local weights file"
            ) from None
        except RuntimeError as error:  # what torch.hub raises for a wrong checksum
            raise WeightsError(f"{name}: {published.url}: {error}") from None
    return replace(_local(path), source=name)


def _local(path: Path) -> _File:
    if not path.is_file():
        near = get_close_matches(str(path), PUBLISHED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise WeightsError(
            f"no weights file {path}; {hint}Published names are: {', '.join(PUBLISHED)}"
        )
    published = next((entry for entry in PUBLISHED.values() if entry.file == path.name), None)
    if published is not None:
        _require_checksum(path, published)
    content, metadata = _read(path)
    author = content.get("__author__") if isinstance(content, dict) else None
    tensors = _state_dict(content, path)
    mean_image = tensors.pop(MEAN_IMAGE, None)
    try:
        named = to_own_names(tensors, str(author) if author else None)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    traits, input_spec = named.traits, named.input_spec
    if published is not None:
        traits, input_spec = dict(published.traits), published.input_spec
    elif metadata.get("format") == FORMAT:
        try:
            traits, input_spec = (
                json.loads(metadata["traits"]),
                InputSpec.from_json(metadata["input_spec"]),
            )
            if not isinstance(traits, dict):
                raise ValueError(f"traits are {metadata['traits']}")
            input_spec = replace(input_spec, mean_image=mean_image)
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{path}: its metadata are damaged ({error})") from None
    elif mean_image is not None:
        raise WeightsError(
            f"{path} holds a mean image but not the rest of what the network expects as input: "
            "give the file it was taken from"
        )
    elif (
        named.naming == "torchvision"
        and "layer4.0.conv1.weight" in named.tensors
        and re.search(r"caffe|msra", path.name, re.IGNORECASE)
    ):
        traits, input_spec = {"stride_placement": "original"}, CAFFE
    return _File(str(path), named.naming, named.tensors, traits, input_spec)


def _require_checksum(path: Path, published: PublishedWeights) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(published.sha256_prefix):
        raise WeightsError(
            f"{path} is not the file it is named after: its sha256 starts with "
            f"{digest.hexdigest()[:8]}, not {published.sha256_prefix}. It is damaged or was "
            "changed: fetch it again, or give it another name"
        )


def _read(path: Path) -> tuple[object, dict[str, str]]:
    """Return the content of a file and its metadata, of which only .safetensors has any."""
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        if path.suffix in (".pkl", ".pickle") and not zipfile.is_zipfile(path):
            return load_arrays(path), {}
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (pickle.UnpicklingError, ForbiddenPickleError) as error:
        named = error.name if isinstance(error, ForbiddenPickleError) else None
        with contextlib.suppress(AttributeError, IndexError, TypeError):
            named = named or re.search(r"GLOBAL (\S+)", str(error))[1]
        raise WeightsError(
            f"{path} holds objects other than tensors{f' ({named})' if named else ''}; it was not "
            "loaded, because loading could run code. Save the weights with "
            "torch.save(net.state_dict(), ...) or as .safetensors"
        ) from None
    except Exception as error:  # what a damaged file makes torch's reader raise has no bounds
        raise WeightsError(
            f"{path} is damaged or not a weights file ({_first_line(error)})"
        ) from None


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, out of the mappings releases wrap them in."""
    while isinstance(content, dict):
        inner = [
            content[wrapping] for wrapping in _WRAPPINGS if isinstance(content.get(wrapping), dict)
        ]
        if not inner:
            break
        content = inner[0]
    if isinstance(content, dict):
        content = {
            name: value
            for name, value in content.items()
            if isinstance(value, Tensor) or name not in _BESIDE_TENSORS
        }
    is_state = (
        isinstance(content, dict)
        and content
        and all(isinstance(name, str) and isinstance(t, Tensor) for name, t in content.items())
    )
    if not is_state:
        raise WeightsError(f"{path} is not a state dict: expected a mapping of names to tensors")
    odd = [
        name
        for name, t in content.items()
        if t.layout != torch.strided or t.is_quantized or t.is_meta or t.dtype not in _DTYPES
    ]
    if odd:
        tensor = content[odd[0]]
        raise WeightsError(
            f"{path}: {odd[0]} is a {tensor.dtype} tensor of layout {tensor.layout}; expected "
            "plain arrays of numbers"
        )
    return content


_WRAPPINGS = ("state_dict", "model", "blobs")
_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip

_BESIDE_TENSORS = ("__author__", "matching_heuristics", "weight_order", "cfg")
"""What Detectron and detectron2 keep beside the arrays."""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


# ---- whether a file fits ----


def _require_same_traits(source: str, traits: dict[str, str], own: dict[str, str]) -> None:
    for trait, value in traits.items():
        if own.get(trait, value) != value:
            raise WeightsError(
                f"{source} was trained with {trait}='{value}'; this network was built with "
                f"'{own[trait]}', where these weights would fit and be wrong. Build it with "
                f"{trait}='{value}'"
            )


def _require_architecture(name: str, net: Backbone) -> None:
    """Raise WeightsError where `net` is known to be another network than the published file
    is of.
    """
    is_of, looks_like = PUBLISHED[name].architecture, recognise(net.state_dict())
    if looks_like is not None and looks_like != is_of:
        raise WeightsError(
            f"{name} does not fit this network. The file is of {is_of}; the network looks like "
            f"{looks_like}"
        )


def _require_fit(
    file: _File, own: dict[str, Tensor], used: dict[str, Tensor], skipped: dict[str, str]
) -> None:
    absent = [name for name in own if name not in file.tensors and name not in skipped]
    extra = [name for name in file.tensors if name not in own and name not in skipped]
    misshapen = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in used.items()
        if tensor.shape != own[name].shape
    ]
    if absent or extra or misshapen:
        parts = [
            f"{what} {len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for what, names in (
                ("missing", absent),
                ("unexpected", extra),
                ("of another shape", misshapen),
            )
            if names
        ]
        name = recognise(own)
        network = f"this network, a {name}" if name else "this network"
        raise WeightsError(
            f"{file.source} does not fit {network}.{_hint(file.tensors, own)} Tensors "
            f"{'; '.join(parts)}"
        )
    kinds = [
        name
        for name, tensor in used.items()
        if tensor.is_floating_point() != own[name].is_floating_point()
    ]
    if kinds:
        raise WeightsError(
            f"{file.source}: {kinds[0]} is {used[kinds[0]].dtype}, expected {own[kinds[0]].dtype}"
        )
    sick = [
        name for name, tensor in used.items() if not tensor.to(own[name].dtype).isfinite().all()
    ]
    if sick:
        raise WeightsError(
            f"{file.source}: {', '.join(sick[:3])} has values that are NaN or infinite; the file "
            "is damaged"
        )


def _hint(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Return what the file is likely to be, as a sentence that starts with a blank, or nothing."""
    looks_like = recognise(tensors)
    if (
        looks_like
        and looks_like == recognise(own)
        and ("bn1.running_mean" in tensors) != ("bn1.running_mean" in own)
    ):
        if "bn1.running_mean" in tensors:
            return (
                " The file has batch norm statistics: build the network with norm='frozen' or "
                "'batch'."
            )
        if "conv1.bias" in tensors:
            return (
                " The batch norms of the file are folded into its convolutions: load the weights "
                "as they were before, then fold."
            )
        return " The file has no batch norm statistics: build the network with norm='group'."
    return f" The file looks like {looks_like}." if looks_like else ""


_DEPTHS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "34", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}
_VGG_CONVOLUTIONS = {13: "vgg16", 16: "vgg19"}


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Return the network of this package whose tensors, of any shape (...,), these are, by their
    names, or None: "resnet34", "resnet34 with shortcut C".
    """
    convolutions = [
        name
        for name, tensor in tensors.items()
        if name.startswith("features.") and tensor.dim() == 4
    ]
    if convolutions:
        name = _VGG_CONVOLUTIONS.get(len(convolutions))
        return name and name + (
            "_bn"
            if any(key.startswith("features.") and key.endswith("running_mean") for key in tensors)
            else ""
        )
    blocks = {
        match.group(1, 2) for name in tensors if (match := re.match(r"layer([1-4])\.(\d+)\.", name))
    }
    depths = tuple(sum(layer == str(number) for layer, _ in blocks) for number in range(1, 5))
    projections = sum(name.endswith("downsample.0.weight") for name in tensors)
    if depths[3] == 0:
        small = "conv1.weight" in tensors and tensors["conv1.weight"].shape[2:] == (3, 3)
        if not small or depths[0] == 0 or len(set(depths[:3])) > 1:
            return None
        depth = 6 * depths[0] + 2
        return (
            f"resnet{depth} with shortcut {'C' if projections > 2 else 'B'}"
            if projections
            else f"resnet{depth} or plain{depth}"
        )
    number = _DEPTHS.get(depths)
    if number == "34" and any(re.match(r"layer1\.0\.conv3\.", name) for name in tensors):
        number = "50"
    if number is None:
        return None
    usual = 3 if number in ("18", "34") else 4
    if projections == 0:
        return f"resnet{number} with shortcut A" + (
            f", or plain{number}" if number in ("18", "34") else ""
        )
    return f"resnet{number}" + (" with shortcut C" if projections > usual else "")
