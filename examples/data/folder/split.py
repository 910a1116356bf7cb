"""Divide a folder of images into labeled, validation, test and training images, whole groups at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from examples.data.folder.masks import composed, read_lines
from examples.data.splits import MAX_DRAWS, best_of
from examples.json_files import read_json

VALIDATION = 5  # images, as for JSRT; fewer where there are few
TEST_SHARE = 1 / 3

Split = dict[str, list[str]]  # {"labeled": stems, "validation": stems, "test": stems}
PARTS = ("labeled", "validation", "test")


def find_groups(stems: Iterable[str], pattern: str | None) -> dict[str, str]:
    """Map images to groups: the pattern's first group in the name, the whole match if it has none, or the name."""
    if pattern is None:
        return {stem: stem for stem in stems}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern: {pattern} is not a regular expression: {error}") from error
    groups = {}
    for stem in stems:
        match = expression.search(stem)
        group = match and match.group(min(expression.groups, 1))
        if not group:
            raise ValueError(f"group_pattern: {pattern} finds no group in {stem}; it has to in every image's name")
        groups[stem] = group
    return groups


def by_group(stems: Iterable[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for stem in sorted(stems):
        members.setdefault(groups[stem], []).append(stem)
    return members


def lacking(stems: Iterable[str], presence: Mapping[str, frozenset[str]], class_names: Iterable[str]) -> list[str]:
    """Return the classes that none of the images shows."""
    found = frozenset().union(*(presence[stem] for stem in stems))
    return [name for name in class_names if name not in found]


def check_shown(presence: Mapping[str, frozenset[str]], class_names: Iterable[str]) -> None:
    """Refuse classes that no image with a mask shows: no draw could."""
    if missing := lacking(presence, presence, class_names):
        raise ValueError(
            f"root: none of the {len(presence)} images with a mask shows {', '.join(missing)} at this size; where their"
            " masks do, it is lost as they are made smaller: pass a larger --image-size; else take the class out of"
            " classes.txt, or its folder out of masks"
        )


def draw_split(
    presence: Mapping[str, frozenset[str]],
    groups: Mapping[str, str],
    class_names: Iterable[str],
    labeled: int,
    split: int,
) -> Split:
    """Draw a split, the same for the same names; validation and test stay where only ``labeled`` changes.

    About a third of the labeled images are for test, and five for validation (of fewer than 30, a sixth). Draws
    are repeated until every class is in every part, or, where that never happens, at least among the labeled ones.

    Args:
        presence: Labeled image -> the classes in it.
        groups: Image -> group, which is never divided.
        class_names: All classes.
        labeled: Number of labeled images to draw.
        split: Which of the draws.
    """
    check_shown(presence, class_names)
    members = by_group(presence, groups)
    if len(members) < 3:
        raise ValueError(
            f"root: {len(members)} groups (or single images) have a mask, expected 3 or more: one each to train,"
            " validate and test"
        )

    def lacks(stems: Iterable[str]) -> int:
        return len(lacking(stems, presence, class_names))

    def faults(parts: tuple[list[str], list[str], list[str]]) -> tuple[int, int, int]:
        test, validation, rest = parts
        return max(0, labeled - len(rest)), lacks(rest), lacks(validation) + lacks(test)

    rng = np.random.default_rng(split)
    test, validation, rest = best_of(lambda: divide(members, rng), faults)
    if len(rest) < labeled:
        raise ValueError(
            f"labeled: {labeled}, but of {len(presence)} images with a mask, {len(validation)} are for validation and"
            f" {len(test)} for test, which leaves {len(rest)}"
        )
    rng = np.random.default_rng([labeled, split])
    chosen = best_of(lambda: sorted(rng.permutation(rest)[:labeled].tolist()), lambda stems: (lacks(stems),))
    if missing := lacking(chosen, presence, class_names):
        raise ValueError(
            f"labeled: no {', '.join(missing)} in any of {MAX_DRAWS} draws of {labeled} images; pass a larger --labeled"
        )
    return {"labeled": chosen, "validation": validation, "test": test}


def draw_around(
    labeled: list[str],
    presence: Mapping[str, frozenset[str]],
    groups: Mapping[str, str],
    class_names: Iterable[str],
    split: int,
) -> Split:
    """Draw validation and test from the groups with a mask that none of the given labeled images is of."""
    taken = {groups[stem] for stem in labeled}
    members = by_group((stem for stem in presence if groups[stem] not in taken), groups)
    if len(members) < 2:
        raise ValueError(
            f"labeled.txt: {len(members)} groups (or single images) with a mask are left beside its own, expected 2 or"
            " more: one each to validate and test"
        )
    check_shown(presence, class_names)
    if missing := lacking(labeled, presence, class_names):
        raise ValueError(f"labeled.txt: no {', '.join(missing)} in any of its images; name one that shows it")
    rng = np.random.default_rng(split)

    def faults(parts: tuple[list[str], list[str], list[str]]) -> tuple[int]:
        return (sum(len(lacking(part, presence, class_names)) for part in parts[:2]),)

    test, validation, _ = best_of(lambda: divide(members, rng), faults)
    return {"labeled": labeled, "validation": validation, "test": test}


def read_list(path: Path, known: Collection[str], which: str) -> list[str] | None:
    """Read names of images, one a line; None where there is no such file. ``which`` says in words what is known."""
    if not path.is_file():
        return None
    names = read_lines(path)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{path} names {unknown[0]!r}, but there is no image of that name{which}; expected names without suffix,"
            " one a line"
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} holds {len(names)} names, {len(set(names))} different ones; expected each once")
    return names


def divide(members: Mapping[str, list[str]], rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """Deal whole groups out, in random order: the images for test, for validation, and those left."""
    images = sum(map(len, members.values()))
    order = rng.permutation(sorted(members)).tolist()
    parts = []
    for target in (images * TEST_SHARE, min(VALIDATION, max(1, images // 6))):
        taken: list[str] = []
        count = 0
        for group in order:
            if abs(count + len(members[group]) - target) < abs(count - target):  # nearer with it than without
                taken.append(group)
                count += len(members[group])
        taken = taken or [min(order, key=lambda group: len(members[group]))]
        order = [group for group in order if group not in taken]
        parts.append(sorted(stem for group in taken for stem in members[group]))
    return parts[0], parts[1], sorted(stem for group in order for stem in members[group])


def read_split(
    path: Path,
    presence: Mapping[str, frozenset[str]],
    groups: Mapping[str, str],
    class_names: Iterable[str],
) -> Split:
    """Read a split that the user has chosen, after the same rules as those drawn by :func:`draw_split`."""
    expected = 'expected {"labeled": [...], "validation": [...], "test": [...]}, lists of image names without suffix'
    try:
        chosen: Split = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; {expected}") from error
    if not isinstance(chosen, dict) or set(chosen) != set(PARTS):
        raise ValueError(f"{path} holds {json.dumps(chosen):.60}, {expected}")
    seen: dict[str, str] = {}
    for part in PARTS:
        named = isinstance(chosen[part], list) and all(isinstance(stem, str) for stem in chosen[part])
        if not named or not chosen[part]:
            raise ValueError(f"{path} holds {json.dumps(chosen[part]):.60} for {part}, {expected}")
        chosen[part] = [composed(stem) for stem in chosen[part]]
        for stem in chosen[part]:
            if stem not in presence:
                raise ValueError(f"{path} names {stem!r} for {part}, but there is no image of that name with a mask")
            if stem in seen:
                raise ValueError(
                    f"{path} names {stem} for {seen[stem]} and again for {part}; expected only one of them"
                )
            seen[stem] = part
    home: dict[str, str] = {}  # group -> part
    for stem, part in seen.items():
        if home.setdefault(groups[stem], part) != part:
            raise ValueError(f"{path} has group {groups[stem]} in {home[groups[stem]]} and in {part}; keep it together")
    check_shown(presence, class_names)
    if missing := lacking(chosen["labeled"], presence, class_names):
        raise ValueError(f"{path}: no {', '.join(missing)} in any labeled image; name one that shows it")
    return chosen


def training_images(split: Split, groups: Mapping[str, str], listed: list[str] | None = None) -> list[str]:
    """Return all images, with a mask or not, but those whose group is kept for validation or test.

    Where some are ``listed``, only these and the labeled ones.
    """
    kept = {groups[stem] for stem in (*split["validation"], *split["test"])}
    wanted = groups.keys() if listed is None else {*listed, *split["labeled"]}
    return [stem for stem, group in groups.items() if group not in kept and stem in wanted]
