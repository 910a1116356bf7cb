"""The results of runs, read from JSON files and sorted into sections: runs whose figures may be compared."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from examples.config import ABLATIONS, RUN_ENV_FIELDS, Config, MethodName, applies_to, defaults
from examples.json_files import read_json
from examples.reporting import paper
from examples.typed_fields import known_fields

METHODS: tuple[str, ...] = get_args(MethodName)
REQUIRED = ("dataset", "method", "labeled", "split", "seed", "iterations", "image_size", "miou", "config")
STUDIED = (*ABLATIONS, "iterations")  # the options that tables compare
# What makes no other setting: row and cell of a table, and the length, which is compared like an option.
CELL = {"dataset", "method", "labeled", "split", "seed", "iterations", "double_length"}

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """A row of the tables of methods; ``steps`` only where others of the section have another number of them."""

    method: str
    threshold: float | None = None
    double: bool = False
    steps: int | None = None

    @property
    def name(self) -> str:
        threshold = f" {decimals(self.threshold, 2)}" if self.threshold else ""
        steps = f", {self.steps} steps" if self.steps else ""
        return self.method + threshold + steps + "*" * self.double

    @property
    def usual_length(self) -> bool:
        return not self.double and self.steps is None


@dataclass(frozen=True)
class Run:
    """One result.json; ``other_length`` is its number of steps where most runs of its section have another one."""

    path: Path
    content: dict[str, Any] = field(repr=False)
    other_length: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name in REQUIRED or name in ("commit", "seconds", "device", "data", "history", "pictures"):
            return self.content.get(name)
        raise AttributeError(name)

    @property
    def config(self) -> dict[str, Any]:
        """The options as they are today, those that the file does not hold at their defaults."""
        return {name: self.content["config"].get(name, usual) for name, usual in defaults(self.dataset).items()}

    @property
    def found(self) -> str:
        """What data were found; how they were divided, which a split decides, stands after a semicolon."""
        return str(self.data).partition(";")[0]

    @property
    def digests(self) -> dict[str, str]:
        """Name of a labeled, validation or test image -> hash of its labels; empty in files that do not say."""
        return (self.content.get("division") or {}).get("digests") or {}

    @property
    def pooled(self) -> bool:
        return self.content.get("score") == "miou_pooled"

    @property
    def score(self) -> float:
        """The figure that ranks methods in this data set."""
        return float(self.content["miou_pooled" if self.pooled else "miou"])

    @property
    def iou_per_class(self) -> dict[str, float | None]:
        return self.content.get("iou_per_class_pooled" if self.pooled else "iou_per_class") or {}

    @property
    def double(self) -> bool:
        return bool(self.config["double_length"])

    @property
    def row(self) -> Row:
        threshold = self.config["threshold"] if self.method in paper.THRESHOLDS else None
        return Row(self.method, threshold, self.double, self.other_length)

    @property
    def length(self) -> int:
        """Its number of steps, or half of it where it was to be twice the others'."""
        return int(self.iterations // 2 if self.double else self.iterations)

    @property
    def setting(self) -> Options:
        """What has to agree for two runs to be compared at all."""
        rest = {name: value for name, value in self.config.items() if name not in {*CELL, *RUN_ENV_FIELDS, *ABLATIONS}}
        if self.dataset == "folder":
            rest["data"] = self.found
        return tuple(sorted({**rest, "image_size": self.image_size}.items()))

    @property
    def studied(self) -> Options:
        """The options that a study varies and that apply to this method; k as a share."""
        config = self.config | {"iterations": self.length}
        values = {name: config[name] for name in STUDIED if applies_to(self.method, name)}
        if self.method in paper.THRESHOLDS:
            del values["threshold"]  # it has rows of its own
        if isinstance(values.get("k"), int):
            side = config["map_size"] or self.image_size
            values["k"] = values["k"] / (config["pool_size"] * side**2)
        if "k" in values:
            values["k"] = round(values["k"], 3)
        return tuple(values.items())

    def option(self, name: str) -> Any:
        return dict(self.studied).get(name, self.config.get(name))

    @property
    def cell(self) -> tuple[Any, ...]:
        """The same for two runs that should have given the same figures."""
        return (self.dataset, self.setting, self.row, self.studied, self.labeled, self.split, self.seed)

    def mean_over_classes(self, name: str) -> float | None:
        """Return that of ``pseudo_label_precision`` or ``pseudo_label_weight``."""
        return mean_over_classes(self.content.get(name))


@dataclass(frozen=True)
class Mean:
    """The mean over runs, their standard deviation (None for one run) and their number."""

    mean: float
    sd: float | None
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean | None:
        """Summarize the values that are not None; None where there are none."""
        present = [value for value in values if value is not None]
        if not present:
            return None
        return cls(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else None, len(present))


@dataclass
class Section:
    """Runs on one data set in one setting; their most common length, and for each method its most common options."""

    dataset: str
    setting: dict[str, Any]
    runs: list[Run]
    length: int = field(init=False)
    usual: dict[str, Options] = field(init=False)

    def __post_init__(self) -> None:
        lengths = Counter(run.length for run in self.runs)
        self.length = max(lengths, key=lambda length: (lengths[length], length))
        self.runs = [run if run.length == self.length else replace(run, other_length=run.length) for run in self.runs]
        everywhere = Counter(option for run in self.runs for option in run.studied)
        self.usual = {}
        for method in self.methods:
            counts = Counter(run.studied for run in self.runs if run.method == method)
            # As many runs one way as another: the way that other methods have, too; then what the paper has.
            self.usual[method] = max(
                counts,
                key=lambda options: (
                    counts[options],
                    sum(everywhere[option] for option in options),
                    -abs(dict(options).get("k", 0) - paper.NEIGHBORS),
                    -abs(dict(options).get("pool_size", 0) - 3),
                    str(options),
                ),
            )

    @property
    def methods(self) -> list[str]:
        return ordered({run.method for run in self.runs})

    @property
    def labeled(self) -> list[int]:
        return sorted({run.labeled for run in self.runs})

    @property
    def main(self) -> list[Run]:
        """The runs with the usual options of their method: those of the tables of methods."""
        return [run for run in self.runs if run.studied == self.usual[run.method]]

    def rows(self) -> list[Row]:
        """Return what was run, and what the paper has on this data set; unusual lengths of a method come last."""
        found = {run.row for run in self.main}
        starred = {Row(row.method, row.threshold) for row in found if row.double}
        published = {Row(*key) for key in paper.MIOU.get(self.dataset, ())} - starred
        rows = sorted(found | published, key=lambda row: (row.threshold or 0, row.steps or 0, row.double))
        order = ordered({row.method for row in rows})
        return sorted(rows, key=lambda row: order.index(row.method))

    def varying(self, method: str, free: Sequence[str], labeled: int) -> list[Run]:
        """Return the runs of a method that have its usual options but for the free ones."""
        fixed = {name: value for name, value in self.usual.get(method, ()) if name not in free}
        return [
            run
            for run in self.runs
            if run.method == method
            and run.labeled == labeled
            and not run.double
            and {name: value for name, value in run.studied if name not in free} == fixed
        ]

    def study(self, method: str, free: Sequence[str]) -> tuple[int, list[Run]]:
        """Return the number of labeled images with most variants by :meth:`varying`, and those runs."""

        def variants(labeled: int) -> int:
            return len({run.studied for run in self.varying(method, free, labeled)})

        best = max(sorted({run.labeled for run in self.runs}), key=variants)  # the smallest of equals
        return best, self.varying(method, free, best)


def read_results(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read all results below the folders, and collect warnings about files that cannot be read or are there twice."""
    if not folders:
        raise ValueError("RUNS: none given, expected folders of runs, or folders that hold some")
    paths: dict[Path, None] = {}  # a set that keeps the order
    for folder in folders:
        if not folder.exists():
            raise FileNotFoundError(f"RUNS: got {folder}, which does not exist; expected a folder with results")
        found = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
        paths.update(dict.fromkeys(path.resolve() for path in found))
    runs, warnings = [], []
    for path in map(from_here, paths):
        try:
            content = read_json(path)
            if not isinstance(content, dict) or not {"dataset", "method", "miou"} <= content.keys():
                if path.name == "result.json":
                    warnings.append(f"warning: {path} holds no result of examples.train; skipped")
                continue
            check(content)
            runs.append(Run(path, content))
        except (OSError, ValueError) as error:
            warnings.append(f"warning: {path} cannot be read ({error}); skipped")
    if not runs:
        shown = " ".join(map(str, folders))
        problems = "".join(f"\n{warning}" for warning in warnings)
        raise FileNotFoundError(
            f"RUNS: no results below {shown}; expected result.json files as python -m examples.train writes{problems}"
        )
    runs, duplicates = newest(runs)
    return runs, warnings + duplicates


def check(content: dict[str, Any]) -> None:
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in it")
    for key in ("labeled", "split", "seed", "iterations"):
        if not isinstance(content[key], int):
            raise ValueError(f"{key}: got {content[key]}, expected an integer")
    if not isinstance(content["config"], dict):
        raise ValueError(f"config: got {content['config']}, expected the options of a run")
    for options in (content, content["config"]):
        known_fields(Config, options)
    for key in ("iou_per_class", "iou_per_class_pooled", "pseudo_label_weight", "pseudo_label_precision"):
        values = content.get(key) or {}
        if not isinstance(values, dict) or not all(isinstance(value, int | float | None) for value in values.values()):
            raise ValueError(f"{key}: got {values!r:.60}, expected a number for each class")
    score = content.get("score", "miou")
    if not isinstance(content.get(score), (int, float)):
        raise ValueError(f"{score}: got {content.get(score)}, expected a number")


def newest(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Keep, of runs for the same cell, the newest file, and return an error for each that lost."""
    kept: dict[tuple[Any, ...], Run] = {}
    errors = []
    for run in sorted(runs, key=lambda run: (run.path.stat().st_mtime_ns, str(run.path))):
        older = kept.pop(run.cell, None)
        if older:
            cell = f"{run.dataset} {run.row.name} N_l = {run.labeled} split {run.split} seed {run.seed}"
            errors.append(f"error: two results for {cell}: {older.path} and {run.path}; the newer, {run.path}, is used")
        kept[run.cell] = run
    return sorted(kept.values(), key=lambda run: str(run.path)), errors


def sections(runs: Sequence[Run]) -> list[Section]:
    groups: dict[tuple[str, Options], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.setting), []).append(run)
    return [
        Section(dataset, dict(setting), sorted(members, key=lambda run: (run.labeled, run.split, run.seed)))
        for (dataset, setting), members in sorted(groups.items(), key=lambda item: (item[0][0], str(item[0][1])))
    ]


def by(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Group runs by a key, in the order of the keys."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return dict(sorted(groups.items()))


def mean_over_classes(values: dict[str, float | None] | None) -> float | None:
    """Return the mean without background and classes that have no value; None where none has one."""
    present = [value for label, value in (values or {}).items() if label != "background" and value is not None]
    return statistics.fmean(present) if present else None


def ordered(methods: Iterable[str]) -> list[str]:
    """Sort methods as in the paper's tables, unknown ones last."""
    return sorted(methods, key=lambda method: (METHODS.index(method) if method in METHODS else len(METHODS), method))


def decimals(value: float, digits: int = 3) -> str:
    """.793, as the paper writes it; a threshold of .8 without a zero behind."""
    text = f"{value:.{digits}f}"
    if digits == 2:
        text = text.rstrip("0")
    return text.removeprefix("0") if text.startswith("0.") else text.replace("-0.", "-.", 1)


def from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
