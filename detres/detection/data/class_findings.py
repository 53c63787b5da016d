"""Classes that are told apart, learnt or evaluated badly: a Finding a kind."""

from __future__ import annotations

from collections.abc import Sequence

from detres.detection.data.findings import Example, Finding, Kind, Part

SELDOM = 10
"""Objects to learn from, below which a class is seldom."""

OTHER_CLASSES = Kind(
    "other_classes",
    "error",
    "classes that not all splits have",
    "Give all splits the same classes, by name: training refuses them as they are.",
)
NEVER_LEARNT = Kind(
    "never_learnt",
    "warning",
    "classes that val or test has objects of, and train has none",
    "Move some of their images into train, or leave the classes out: they will never be found.",
)
SELDOM_SEEN = Kind(
    "seldom_seen",
    "note",
    f"classes with fewer than {SELDOM} objects in train",
    "Label more of them: so few are hardly learnt, and numbers on them say little.",
)
NEVER_SEEN = Kind(
    "never_seen",
    "note",
    "classes without an object in any split",
    "Leave them out (classes), or label some.",
)


def class_findings(parts: Sequence[Part]) -> list[Finding]:
    """Return what the numbers of objects of each class say; the first part is what is learnt
    from.
    """
    train, *others = parts
    counts = {part.name: part.class_counts() for part in parts}
    learnt = counts[train.name]
    elsewhere = {
        name: {part.name: counts[part.name].get(name, 0) for part in others} for name in learnt
    }
    never = [name for name, count in learnt.items() if count == 0]
    lacking = [name for name in never if any(elsewhere[name].values())]
    unseen = [name for name in never if name not in lacking]
    seldom = sorted((name for name in learnt if 0 < learnt[name] < SELDOM), key=learnt.get)
    return [
        *_other_classes(parts, counts),
        *NEVER_LEARNT.of(
            len(lacking), [Example(name, _in_words(elsewhere[name])) for name in lacking]
        ),
        *SELDOM_SEEN.of(
            len(seldom), [Example(name, _in_words({train.name: learnt[name]})) for name in seldom]
        ),
        *NEVER_SEEN.of(len(unseen), [Example(name, "") for name in unseen]),
    ]


def _other_classes(parts: Sequence[Part], counts: dict[str, dict[str, int]]) -> list[Finding]:
    """The classes by which a split cannot be evaluated with the detector of another: those that its
    files do not have, and those with objects that train's do not.
    """
    train, *others = parts
    examples = []
    for part in others:
        if part.annotations.without_truth is not None:
            continue
        own, known = counts[part.name], counts[train.name]
        examples += [
            Example(name, f"{part.name} has {own[name]} objects, {train.name} no such class")
            for name in own
            if name not in known and own[name]
        ]
        examples += [
            Example(name, f"{train.name} has the class, {part.name} does not")
            for name in known
            if name not in own
        ]
    return OTHER_CLASSES.of(len(examples), examples)


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} in {split}" for split, count in counts.items() if count)
