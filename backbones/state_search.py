"""Finding a network's tensors in what a file holds: under any one prefix, in any one wrapper.

Training code puts a state dict into others, under names of its own, beside an optimizer, a
teacher, an average of the weights or a head. No list of these is kept here: every tensor of a file
gets a name that leads to it through all mappings, and whatever prefix completes the network is it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backbones.restricted_pickle import Record
from backbones.weight_names import Named, to_own_names


class NotFoundError(ValueError):
    """No network is found, or several of which none is to be preferred; the message says what."""


@dataclass(frozen=True)
class Contents:
    """The tensors of a file by the names that lead to them, such as "state_dict.module.fc.bias".

    odd: name -> what it is, of tensors that are no plain arrays. modules: classes of whole pickled
    modules, whose tensors are not among these. author: what detectron2's own files state.
    swapped: whether mmengine wrote it, which keeps averaged weights in the place of the raw ones.
    """

    tensors: dict[str, Tensor]
    odd: dict[str, str]
    modules: tuple[str, ...] = ()
    author: str | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Found:
    """A network's tensors in a file. prefix: of their names in the file. left_over: names in the
    file of other tensors. notes: what the user should know, a line each.
    """

    named: Named
    prefix: str
    left_over: tuple[str, ...]
    notes: tuple[str, ...] = ()


def contents_of(content: object) -> Contents:
    """Return the tensors in nested containers; raises NotFoundError when two get one name."""
    tensors: dict[str, Tensor] = {}
    odd: dict[str, str] = {}
    modules: dict[str, None] = {}

    def visit(value: object, name: str, depth: int) -> None:
        if isinstance(value, Tensor):
            name = _WRAPPED.sub("", name)
            if name in tensors:
                raise NotFoundError(f"{name} is there twice")
            tensors[name] = value
        elif isinstance(value, Record) and "_modules" in value:
            modules[value.name] = None
        elif isinstance(value, Record) and "tensor" in value.name and "." not in value.name:
            odd[_WRAPPED.sub("", name)] = value.name
        elif isinstance(value, Mapping) and depth < _DEPTH:
            for key, item in value.items():
                visit(item, f"{name}.{key}" if name else str(key), depth + 1)
        elif isinstance(value, (list, tuple)) and depth < _DEPTH and len(value) < _LONG:
            for index, item in enumerate(value):
                visit(item, f"{name}.{index}" if name else str(index), depth + 1)

    visit(content, "", 0)
    about = content if isinstance(content, Mapping) else {}
    author, meta = about.get("__author__"), about.get("meta")
    return Contents(
        _with_conv5_of_a_detector(_with_heads_beside(tensors)),
        odd,
        tuple(modules),
        str(author) if author else None,
        isinstance(meta, Mapping) and "mmengine_version" in meta,
    )


_DEPTH, _LONG = 8, 1000
"""Wrappers of wrappers, and lists, that are looked into."""

_WRAPPED = re.compile(r"(?:(?<=\.)|^)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""


def _with_heads_beside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmpretrain's and transformers' classifiers lie beside the network that they belong to."""
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(|.*\.)(head\.fc|classifier\.1)\.(weight|bias)", name)
        if match:
            network, root = _HEADS[match[2]]
            own = f"{match[1]}{network}.fc.{match[3]}"
            if f"{match[1]}{network}.{root}" in tensors and own not in tensors:
                name = own
        found[name] = tensor
    return found


_HEADS = {
    "head.fc": ("backbone", "conv1.weight"),
    "classifier.1": ("resnet", "embedder.embedder.convolution.weight"),
}


def _with_conv5_of_a_detector(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A C4 detector has conv5 in its head: detres's as roi_head.box_head.conv5 (in earlier files
    roi_head.conv5), detectron2's as roi_heads.res5.
    """
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(|.*\.)roi_head(?:s|\.box_head|)\.(conv5|res5)\.(.*)", name)
        if match:
            stage = "layer4" if match[2] == "conv5" else "res5"
            own = f"{match[1]}backbone.{stage}.{match[3]}"
            name = name if own in tensors else own
        found[name] = tensor
    return found


def find_network(contents: Contents, own: Mapping[str, Tensor], head_prefix: str) -> Found:
    """Return the tensors that make up the network with the tensors `own`, or come nearest to it.

    head_prefix: of the classifier's tensors, which may be missing. Of several complete networks
    the one is taken that authors evaluate: an average of weights (ema, swa, teacher) before what
    is averaged; then the encoder that learns (encoder_q, base_encoder, online) before the one that
    follows it (encoder_k, momentum, target). Raises NotFoundError where neither decides, and for a
    file without tensors.
    """
    if not contents.tensors and not contents.modules:
        raise NotFoundError("is not a state dict: expected a mapping of names to tensors")
    candidates = networks_in(contents)
    complete = [each for each in candidates if _completes(each, own, head_prefix)]
    if not complete and contents.modules:
        raise NotFoundError(
            f"holds a whole pickled module ({', '.join(contents.modules)}), whose code is not run: "
            "where it was made, save torch.save(model.state_dict(), FILE), and give that"
        )
    if not complete:
        # max takes the first of equals: the outermost
        return max(candidates, key=lambda each: _likeness(each, own))
    wanted = preferred([each.prefix for each in complete], contents.swapped)
    chosen = [each for each in complete if each.prefix in wanted]
    if any(not _same(chosen[0], other, own) for other in chosen[1:]):
        raise NotFoundError(
            f"holds {len(chosen)} complete networks and does not say which to take: "
            f"{', '.join(_shown(each.prefix) for each in chosen)}. Save the one you mean by itself"
        )
    return _reported(chosen[0], complete, _left_over(chosen[0], own, head_prefix), contents.swapped)


def preferred(prefixes: Sequence[str], swapped: bool) -> list[str]:
    """Return those of the `prefixes` of complete networks, one or more, that authors evaluate, as
    find_network takes them; several where nothing decides. swapped: as of Contents.
    """
    best = max(_rank(prefix, swapped) for prefix in prefixes)
    return [prefix for prefix in prefixes if _rank(prefix, swapped) == best]


def networks_in(contents: Contents) -> list[Found]:
    """Return the tensors behind each prefix that a network's names may have, the shortest first."""
    return [_candidate(contents, prefix) for prefix in _prefixes(contents.tensors)]


_ROOTS = (
    "conv1.weight",
    "conv1_w",
    "stem.conv1.weight",
    "features.0.weight",
    "embedder.embedder.convolution.weight",
)
"""A network's first tensor, in the names of those that are known."""


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """What may stand before a network's names; the shortest, which is nothing, always may."""
    found = {
        name.removesuffix(root)
        for name in tensors
        for root in _ROOTS
        if name.endswith(root) and name.removesuffix(root)[-1:] in ("", ".")
    }
    return sorted({"", *found}, key=lambda prefix: (len(prefix), prefix))


def _candidate(contents: Contents, prefix: str) -> Found:
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in contents.tensors.items()
        if name.startswith(prefix)
    }
    outside = tuple(name for name in contents.tensors if not name.startswith(prefix))
    return Found(to_own_names(inside, contents.author), prefix, outside)


def _completes(found: Found, own: Mapping[str, Tensor], head_prefix: str) -> bool:
    tensors = found.named.tensors
    needed = [
        name for name in own if not name.startswith(head_prefix) and not name.endswith(_COUNTER)
    ]
    fits = all(name in tensors and tensors[name].shape == own[name].shape for name in needed)
    return fits and not unexpected(tensors, own, head_prefix)


def unexpected(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], head_prefix: str
) -> list[str]:
    """Return the names of `tensors` that belong to the trunk of a network and are not in `own`: it
    is another network then. Those of other parts beside it may be left over.
    """
    parts = {name.split(".")[0] for name in own}
    return [
        name
        for name in tensors
        if name not in own
        and not name.startswith(head_prefix)
        and not name.endswith(_COUNTER)
        and (name.split(".")[0] in parts or _TRUNK.match(name))
    ]


_COUNTER = "num_batches_tracked"
_TRUNK = re.compile(r"(layer|conv|bn|norm|features)\d*\.")


def _likeness(found: Found, own: Mapping[str, Tensor]) -> int:
    return sum(name in own for name in found.named.tensors)


def _rank(prefix: str, swapped: bool) -> tuple[bool, bool]:
    words = [f"_{word}_" for word in prefix.lower().split(".")]
    averaged = any(re.search(r"_(ema|swa|avg|averaged?|teacher)_", word) for word in words)
    if swapped and "_ema_state_dict_" in words:
        return False, False
    follows = any(re.search(r"_(k|key|momentum|target)_", word) for word in words)
    return averaged, not follows


def _same(one: Found, other: Found, own: Mapping[str, Tensor]) -> bool:
    ours, theirs = one.named.tensors, other.named.tensors
    return all(
        torch.equal(ours[name], theirs[name]) for name in own if name in ours and name in theirs
    )


def _shown(prefix: str) -> str:
    return prefix.removesuffix(".") or "the names without a prefix"


def _left_over(found: Found, own: Mapping[str, Tensor], head_prefix: str) -> tuple[str, ...]:
    beside = (
        found.prefix + name
        for name in found.named.tensors
        if name not in own and not name.startswith(head_prefix) and not name.endswith(_COUNTER)
    )
    return (*beside, *found.left_over)


def _reported(
    found: Found, complete: list[Found], left_over: tuple[str, ...], swapped: bool
) -> Found:
    """`found`, with a line on what else is in the file, where something is, or that it is an
    average of weights.
    """
    rank = _rank(found.prefix, swapped)
    if not left_over:
        averaged = f"taken from {_shown(found.prefix)}, an average of weights"
        return replace(found, notes=(averaged,)) if rank[0] else found
    others = [_shown(each.prefix) for each in complete if _rank(each.prefix, swapped) != rank]
    groups = Counter(_group(name, found.prefix) for name in left_over)
    shown = [
        f"{group} ({number} tensors)" if number > 1 else group
        for group, number in groups.most_common(4)
    ]
    more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
    why = ", an average of weights" if rank[0] else ""
    if others:
        why = f", {_reason(found.prefix, swapped)} {', '.join(others)}, also complete"
    note = f"taken from {_shown(found.prefix)}{why}; left over: {', '.join(shown)}{more}"
    return replace(found, left_over=left_over, notes=(note,))


def _reason(prefix: str, swapped: bool) -> str:
    averaged, _ = _rank(prefix, swapped)
    return (
        "an average of weights, which comes before"
        if averaged or swapped
        else "which learns itself and comes before"
    )


def _group(name: str, prefix: str) -> str:
    """The name that many tensors have in common, as far as it tells them from the prefix."""
    parts = name.split(".")
    common = 0
    for part, other in zip(parts, prefix.split(".")[:-1], strict=False):
        if part != other:
            break
        common += 1
    return ".".join(parts[: common + 1])
