"""Weights of the backbones: the published files by name, and local files of many origins; nothing
in a file is ever executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from backbones.backbone import Backbone, LoadReport
from backbones.caffe_files import load_caffe_model
from backbones.catalogue import (
    PUBLISHED,
    InputSpec,
    PublishedWeights,
    file_named,
    known_by_conv1,
    known_by_name,
    known_file,
)
from backbones.download import Checksum, ChecksumError, DownloadError, bar, digest_of, download
from backbones.file_kinds import NotWeightsError, weights_kind
from backbones.files import (
    DIGEST,
    DamagedFileError,
    read_safetensors,
    require_digest,
    write_safetensors,
)
from backbones.recognise import Looks, recognise
from backbones.restricted_pickle import ForbiddenPickleError, load_arrays
from backbones.state_search import (
    Contents,
    Found,
    NotFoundError,
    contents_of,
    find_network,
    networks_in,
    unexpected,
)
from backbones.torch_files import load_archive, load_earlier_form

FORMAT = "backbones-2"
"""What a .safetensors file of `save_weights` calls itself in its metadata; backbones-1 had no
digest.
"""

OF_BACKBONE = "backbone"
"""The key under which the file of a larger model says what `backbone_facts` gives of the network in
it.
"""

MEAN_IMAGE = "input.mean_image"
"""The tensor of such a file that belongs to the input, not to the network."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file or the published name and says what
    to do.

    settings: arguments of `create_backbone` that would make the network the weights are of.
    """

    def __init__(self, message: str, settings: Mapping[str, str | float] | None = None) -> None:
        super().__init__(message)
        self.settings = dict(settings or {})


@dataclass(frozen=True)
class _File:
    """A weights file as it was found. traits: what a network must agree on; input_spec: None where
    the file does not tell.
    """

    source: str
    contents: Contents
    said: _Said
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Said:
    """What a file, or its name, tells of the network and its input; None where nothing does."""

    traits: dict[str, str] | None = None
    input_spec: InputSpec | None = None


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
    checksum is verified, also when it is there already. Local files: of torch.save (torch_files),
    .safetensors (save_weights, timm, any), .pkl (Detectron, detectron2; see restricted_pickle),
    .caffemodel (the authors' ResNets and VGGs). Names of torchvision, timm, the widely used CIFAR
    port, Caffe, Detectron and detectron2 are known, under any one prefix and in any containers
    (state_search, which also says what is taken where a file holds several networks).

    Checksums that a file has are verified: those of a zip archive, and a digest in the metadata;
    the report says where there are none.

    input_spec: what the file expects as input, where you know better. Without, the published entry,
    the file's own metadata or its names say; a name with "caffe" or "msra" in it means the authors'
    convention (BGR, stride in the 1x1), one of timm's or torchvision's the 3x3; otherwise the
    network keeps the one it has.

    resize_classifier: give a network that has a classifier one for as many classes as the file's
    tells apart.

    The classifier may be missing, of another size, or not finite: it is skipped and reported.
    Anything else missing, unexpected in the trunk, mis-shaped, of another kind of number or not
    finite raises WeightsError, naming the architecture the file looks like; so does a file trained
    with another stride placement or shortcut padding, which would fit and be wrong. The network is
    then unchanged.
    """
    source = str(weights)
    if source in PUBLISHED:  # before anything is downloaded
        _require_same_traits(source, dict(PUBLISHED[source].traits), net.traits)
        _require_architecture(source, net)
    file = _published(source) if source in PUBLISHED else _local(Path(weights))
    own = net.state_dict()
    try:
        found = find_network(file.contents, own, net.head_prefix)
    except NotFoundError as error:
        raise WeightsError(f"{file.source} {error}") from None
    tensors, traits, expected = found.named.tensors, found.named.traits, found.named.input_spec
    if file.said.traits is not None:
        traits, expected = file.said.traits, file.said.input_spec
    _require_same_traits(file.source, traits, net.traits)
    num_classes = _resized(net, own, tensors) if resize_classifier else None
    skipped = _skipped(own, tensors, net.head_prefix)
    used = {name: tensor for name, tensor in tensors.items() if name in own and name not in skipped}
    _require_fit(file, found, own, used, skipped, net.head_prefix)
    if any(tensor.is_meta for tensor in own.values()):
        raise WeightsError(
            f"the network has no memory for {source}: it was built on the meta device; call "
            "to_empty(device='cpu') first"
        )
    if num_classes is not None:
        net.reset_classifier(num_classes)
    net.load_state_dict(used, strict=False)
    net.input_spec = input_spec or expected or net.input_spec
    net.load_report = LoadReport(
        file.source, found.named.naming, tuple(used), skipped, input_spec or expected,
        found.left_over, (*found.notes, *file.notes),
    )  # fmt: skip
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
        elif name.endswith("num_batches_tracked") and tensors[name].dtype not in _WHOLE:
            skipped[name] = "no whole number in the file; the counter keeps its value"
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
    facts = {**(metadata or {}), "format": FORMAT, **backbone_facts(net)}
    tensors = net.state_dict()
    if net.input_spec.mean_image is not None:
        tensors[MEAN_IMAGE] = net.input_spec.mean_image
    write_safetensors(path, tensors, facts)


def backbone_facts(net: Backbone) -> dict[str, str]:
    """Return what the tensors of a network do not show: what must agree, and its input, as text."""
    return {"traits": json.dumps(net.traits), "input_spec": net.input_spec.to_json()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what a .safetensors file says beside its tensors; nothing for a file that says
    nothing.

    The file's digest is checked, where it has one. Raises WeightsError for a file that is missing,
    damaged or no .safetensors file.
    """
    path = Path(path)
    _require_there(path)
    try:
        kind = weights_kind(path)
        if kind != "safetensors":
            raise WeightsError(
                f"{path} is no .safetensors file but a {kind}, which says nothing beside its "
                "tensors"
            )
        return read_safetensors(path)[1]
    except (DamagedFileError, NotWeightsError, OSError) as error:
        raise WeightsError(str(error)) from None


@dataclass(frozen=True)
class FileFacts:
    """What a weights file tells of the network in it.

    words: "resnet50 of 0.5 times the width". settings: the arguments of `create_backbone` that make
    it. input_spec: what it expects, None where nothing says. ours: whether its metadata say so, as
    those of `save_weights` and of a larger model do, and not what it was published as.
    """

    words: str
    settings: dict[str, str | float]
    input_spec: InputSpec | None
    ours: bool


def facts_of_file(path: str | Path) -> FileFacts | None:
    """Return what a local weights file is of, by its tensors, with all that its metadata, its
    digest, its name and the names in it tell; None for a network that this package does not make.

    Raises WeightsError as `load_weights` does for a file that cannot be read.
    """
    path = Path(path)
    file = _local(path)
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    ours = "traits" in metadata or OF_BACKBONE in metadata
    for found in networks_in(file.contents):
        looks_like = recognise(found.named.tensors)
        if looks_like is None or not looks_like.settings:
            continue
        traits, expected = found.named.traits, found.named.input_spec
        if file.said.traits is not None:
            traits, expected = file.said.traits, file.said.input_spec
        return FileFacts(looks_like.words, {**looks_like.settings, **traits}, expected, ours)
    return None


def recognise_file(path: str | Path) -> Looks | None:
    """Return which network of this package a local weights file is of, by its tensors alone, with
    what its names tell of how to build it; None where that cannot be told.

    Raises WeightsError as `load_weights` does for a file that cannot be read.
    """
    contents = _local(Path(path)).contents
    for found in networks_in(contents):
        looks_like = recognise(found.named.tensors)
        if looks_like is not None:
            settings = looks_like.settings and {**looks_like.settings, **found.named.traits}
            return Looks(looks_like.words, settings)
    return None


# ---- where a file comes from ----


def published_path(name: str) -> Path:
    """Return where the published file `name` lies, or would be downloaded to."""
    return Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED[name].file


def _published(name: str) -> _File:
    published, path = PUBLISHED[name], published_path(name)
    if not path.is_file():
        try:
            with bar() as report:
                checksum = Checksum("sha256", published.sha256_prefix)
                download(published.url, path, checksum, report)
        except ChecksumError as error:
            raise WeightsError(f"{name}: {error}") from None
        except (DownloadError, OSError) as error:
            raise WeightsError(
                f"{name}: could not download {published.url} ({error}). Without a network, put "
                f"that file at {path}, or give the path of a local weights file"
            ) from None
    return replace(_local(path), source=name)


def read_contents(path: Path) -> tuple[Contents, dict[str, str], bool]:
    """Return the tensors of a weights file of any kind that `load_weights` reads, its metadata, of
    which only .safetensors has any, and whether a checksum covers it; raises WeightsError.
    """
    _require_there(path)
    content, metadata, checked = _read(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} is not a state dict: expected a mapping of names to tensors")
    if content.keys() >= _TRAINING_STATE:
        raise WeightsError(
            f"{path} is the state of a training run (last.pt), from which it goes on: give the "
            "weights of that run, best.safetensors or weights.safetensors"
        )
    try:
        return contents_of(content), metadata, checked
    except NotFoundError as error:
        raise WeightsError(f"{path}: {error}") from None


def _local(path: Path) -> _File:
    _require_there(path)
    # those that are published by a name with a digest are of torch.save
    published = _published_file(path) if path.suffix != ".safetensors" else None
    contents, metadata, checked = read_contents(path)
    wrapped = next((name for name in contents.tensors if name.endswith(MEAN_IMAGE)), MEAN_IMAGE)
    mean_image = contents.tensors.pop(wrapped, None)
    if published is not None:
        said = _Said(dict(published.traits), published.input_spec)
    else:
        said = _said_in(metadata, mean_image, path) or _said_by_content(path, contents)
    unchecked = () if checked or published is not None else (UNCHECKED,)
    return _File(str(path), contents, said, unchecked)


_TRAINING_STATE = {"config", "classes", "progress", "model", "optimizer"}
"""The keys of detres's last.pt, which does not say in words what must agree."""

UNCHECKED = "it carries no checksum: damage would not be noticed"
"""What is said of a file whose tensors nothing covers."""


def _require_there(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give the weights file in it")
    if not path.exists():
        near = get_close_matches(str(path), PUBLISHED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise WeightsError(
            f"no weights file {path}; {hint}Published names are: {', '.join(PUBLISHED)}"
        )


def _said_in(metadata: Mapping[str, str], mean_image: Tensor | None, path: Path) -> _Said | None:
    """What the metadata say of the network, None where they are not of this package."""
    written = re.fullmatch(r"backbones-(\d+)", metadata.get("format", ""))
    if written and int(written[1]) > int(FORMAT.rpartition("-")[2]):
        raise WeightsError(
            f"{path} has the format {written[0]}, written by a newer version of this package, "
            f"which reads up to {FORMAT}: update it"
        )
    try:
        if metadata.get("format") == FORMAT:
            require_digest(metadata, path)
        facts = metadata if written else _facts_of_larger(metadata)
        if facts is not None:
            traits = json.loads(facts["traits"])
            if not isinstance(traits, dict):
                raise ValueError(f"traits are {facts['traits']}")
            spec = InputSpec.from_json(facts["input_spec"])
            return _Said(traits, replace(spec, mean_image=mean_image))
    except DamagedFileError as error:
        raise WeightsError(str(error)) from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its metadata are damaged ({error})") from None
    if mean_image is not None:
        raise WeightsError(
            f"{path} holds a mean image but not the rest of what the network expects as input: "
            "give the file it was taken from"
        )
    return None


def _facts_of_larger(metadata: Mapping[str, str]) -> Mapping[str, str] | None:
    """What the file of a larger model says of the network in it.

    Earlier detectors say it in the configuration of their model alone.
    """
    if OF_BACKBONE in metadata:
        return json.loads(metadata[OF_BACKBONE])
    if not metadata.get("format", "").startswith("detres-detector-"):
        return None
    model = json.loads(metadata["model"])
    given = {key: model["input"][key] for key in ("channel_order", "mean", "std")}
    traits = {
        key: model["backbone"][key]
        for key in ("shortcut", "stride_placement")
        if model["backbone"].get(key) in ("A", "original", "torchvision")
    }
    spec = {**json.loads(InputSpec().to_json()), **given}
    return {"traits": json.dumps(traits), "input_spec": json.dumps(spec)}


def _said_by_content(path: Path, contents: Contents) -> _Said:
    """What the first convolution, else the name of a file of torchvision's names tells."""
    for name, tensor in contents.tensors.items():
        if name.rpartition(".")[0].endswith("conv1") and tensor.dtype == torch.float32:
            known = known_by_conv1(tensor)
            if known is not None:
                return _Said(*known)
    known_kinds = ("layer4.0.conv1.weight", "features.0.weight")  # ResNets and VGGs
    if not any(name.endswith(known_kinds) for name in contents.tensors):
        return _Said()
    known = known_by_name(path)
    return _Said() if known is None else _Said(*known)


def _published_file(path: Path) -> PublishedWeights | None:
    """What a file was published as, known by its sha256; raises WeightsError for one that is named
    after another.
    """
    if not path.is_file():
        return None
    digest = digest_of(path)
    named = file_named(path.name)
    if named is not None and not digest.startswith(named.sha256_prefix):
        raise WeightsError(
            f"{path} is not the file it is named after: its sha256 starts with {digest[:8]}, not "
            f"{named.sha256_prefix}. It is damaged or was changed: fetch it again, or give it "
            "another name"
        )
    return known_file(digest)


def _read(path: Path) -> tuple[object, dict[str, str], bool]:
    """Return the content of a file, its metadata, of which only .safetensors has any, and whether a
    checksum covers it.
    """
    try:
        kind = weights_kind(path)
        if kind == "safetensors":
            tensors, metadata = read_safetensors(path)
            return tensors, metadata, DIGEST in metadata
        if kind == "torch archive":
            return load_archive(path), {}, True
        if kind == "earlier torch file":
            return load_earlier_form(path), {}, False
        if kind == "caffe model":
            return load_caffe_model(path), {}, False
        return load_arrays(path), {}, False
    except ForbiddenPickleError as error:
        raise WeightsError(
            f"{path} holds objects other than tensors ({error.name}); it was not loaded, because "
            "loading could run code. Save the weights with torch.save(net.state_dict(), ...) or "
            "as .safetensors"
        ) from None
    except (DamagedFileError, NotWeightsError) as error:
        raise WeightsError(str(error)) from None
    except Exception as error:  # what a damaged file makes a reader raise has no bounds
        raise WeightsError(
            f"{path} is damaged or not a weights file ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")[:200]


# ---- whether a file fits ----


def _require_same_traits(source: str, traits: dict[str, str], own: dict[str, str]) -> None:
    for trait, value in traits.items():
        if own.get(trait, value) != value:
            raise WeightsError(
                f"{source} was trained with {trait}='{value}'; this network was built with "
                f"'{own[trait]}', where these weights would fit and be wrong. Build it with "
                f"{trait}='{value}'",
                {trait: value},
            )


def _require_architecture(name: str, net: Backbone) -> None:
    """Raise WeightsError where `net` is known to be another network than the published file
    is of.
    """
    is_of, looks_like = PUBLISHED[name].architecture, recognise(net.state_dict())
    if looks_like is not None and looks_like.words != is_of:
        raise WeightsError(
            f"{name} does not fit this network. The file is of {is_of}; the network looks like "
            f"{looks_like.words}",
            {"name": is_of},
        )


def _require_fit(
    file: _File,
    found: Found,
    own: dict[str, Tensor],
    used: dict[str, Tensor],
    skipped: dict[str, str],
    head_prefix: str,
) -> None:
    tensors = found.named.tensors
    absent = [name for name in own if name not in tensors and name not in skipped]
    odd = [name for name in absent if found.prefix + name in file.contents.odd]
    if odd:
        raise WeightsError(
            f"{file.source}: {odd[0]} is {file.contents.odd[found.prefix + odd[0]]}; expected a "
            "plain array of numbers"
        )
    misshapen = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in used.items()
        if tensor.shape != own[name].shape
    ]
    if absent or misshapen or unexpected(tensors, own, head_prefix):
        extra = [name for name in tensors if name not in own and name not in skipped]
        parts = [
            f"{what} {len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for what, names in (
                ("missing", absent),
                ("unexpected", extra),
                ("of another shape", misshapen),
            )
            if names
        ]
        network = recognise(own)
        named = f"this network, a {network.words}" if network else "this network"
        hint, settings = _hint(tensors, own)
        raise WeightsError(
            f"{file.source} does not fit {named}.{hint} Tensors {'; '.join(parts)}", settings
        )
    fault = first_fault(used, own)
    if fault is not None:
        raise WeightsError(f"{file.source}: {fault}")


def first_fault(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Return why `tensors`, of any shapes (...,), cannot take the place of those of `own` with the
    same names, None where they can: another kind of number, or values that are not finite.
    """
    for name, tensor in tensors.items():
        kinds = next((kinds for kinds in (_REAL, _WHOLE) if own[name].dtype in kinds), ())
        if tensor.dtype not in (*kinds, own[name].dtype):
            return f"{name} is {tensor.dtype}, expected {own[name].dtype}"
    sick = [
        name for name, tensor in tensors.items() if not tensor.to(own[name].dtype).isfinite().all()
    ]
    if sick:
        more = f" and {len(sick) - 3} more" if len(sick) > 3 else ""
        return (
            f"{', '.join(sick[:3])}{more} has values that are NaN or infinite; the file is "
            "damaged, or its training had failed"
        )
    return None


_REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _hint(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[str, dict[str, str | float]]:
    """Return what the file is likely to be, as a sentence that starts with a blank, or nothing, and
    the arguments that would make such a network.
    """
    looks_like, network = recognise(tensors), recognise(own)
    if (
        looks_like
        and looks_like == network
        and ("bn1.running_mean" in tensors) != ("bn1.running_mean" in own)
    ):
        if "bn1.running_mean" in tensors:
            return (
                " The file has batch norm statistics: build the network with norm='frozen' or "
                "'batch'.",
                {"norm": "batch"},
            )
        if "conv1.bias" in tensors:
            return (
                " The batch norms of the file are folded into its convolutions: load the weights "
                "as they were before, then fold.",
                {},
            )
        return (
            " The file has no batch norm statistics: build the network with norm='group'.",
            {"norm": "group"},
        )
    if looks_like is None:
        return "", {}
    return f" The file looks like {looks_like.words}.", looks_like.settings
