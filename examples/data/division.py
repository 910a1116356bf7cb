"""Which images a run had in which part: kept with what it trained, so that its test can be repeated and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from examples.data.base import Dataset, Images, Selection

Part = Literal["labeled", "validation", "test"]
PARTS: tuple[Part, ...] = ("labeled", "validation", "test")


@dataclass(frozen=True)
class Division:
    """The images of a run by part, as names."""

    labeled: tuple[str, ...]  # those learned from with their labels
    unlabeled: tuple[str, ...]  # those learned from without; the labeled ones may be among them
    validation: tuple[str, ...]  # those that chose the best checkpoint
    test: tuple[str, ...]  # those that it was tested on
    digests: dict[str, str]  # name -> hash of the labels, of all but the unlabeled ones

    @classmethod
    def of(cls, data: Dataset) -> Division:
        """Return how a data set is divided."""
        parts: list[Images] = [getattr(data, part) for part in PARTS]
        digests = {name: part.label_digest(i) for part in parts for i, name in enumerate(part.names)}
        return cls(data.labeled.names, data.unlabeled.names, data.validation.names, data.test.names, digests)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Division:
        """Return the inverse of ``plain``.

        Raises:
            TypeError: it is no division.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        division = cls(**fields)
        names = [*division.labeled, *division.unlabeled, *division.validation, *division.test, *division.digests]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("images are not named")
        return division

    def plain(self) -> dict[str, Any]:
        """Return the fields as checkpoints hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def summary(self) -> dict[str, Any]:
        """Return the fields as result.json holds them: of the unlabeled images their number and a hash of the names."""
        names = "\n".join(sorted(self.unlabeled)).encode(errors="surrogateescape")
        unlabeled = {"images": len(self.unlabeled), "sha256": hashlib.sha256(names).hexdigest()}
        return {**self.plain(), "unlabeled": unlabeled}

    def differences(self, before: Division) -> str:
        """Return, in words, what makes this another division than one before; empty where nothing does."""
        for part in ("labeled", "unlabeled", "validation", "test"):
            if getattr(before, part) != getattr(self, part):
                was, now = set(getattr(before, part)), set(getattr(self, part))
                counts = f"{len(now - was)} new, {len(was - now)} gone"
                return f"the {part} images are not those the run was started with ({counts})"
        if changed := [name for name, digest in self.digests.items() if digest != before.digests[name]]:
            return f"{len(changed)} images have another mask than in the run, such as {changed[0]}"
        return ""

    def find(self, part: Part, sources: Sequence[Images]) -> list[Images]:
        """Find the images of a part of the run among ``sources``, whatever part they would be in today."""
        wanted: tuple[str, ...] = getattr(self, part)
        left = dict.fromkeys(wanted)
        found: list[Images] = []
        changed: list[str] = []
        for source in sources:
            position = {name: i for i, name in enumerate(source.names)}
            here = [name for name in left if name in position]
            changed += [name for name in here if source.label_digest(position[name]) != self.digests.get(name)]
            found.append(Selection(source, [position[name] for name in here]))
            left = {name: None for name in left if name not in position}
        for names, fault in ((list(left), "not there"), (changed, "there with another mask than then")):
            if names:
                raise ValueError(
                    f"root: {len(names)} of the {len(wanted)} {part} images of the run are {fault}, such as {names[0]};"
                    " bring back what the run had, or pass --part all for all images that are there"
                )
        return found

    def unknown(self, sources: Sequence[Images]) -> int:
        """Return how many images there are now that the run did not have."""
        now = {name for source in sources for name in source.names}
        return len(now.difference(self.labeled, self.unlabeled, self.validation, self.test))
