"""The tables of options: what happens to score and pseudo-labels when one option is another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from examples.reporting.results import METHODS, STUDIED, Mean, Options, Run, Section, ordered
from examples.reporting.tables import MISSING, cell, class_name, markdown, mean_score, paired, shown


class Change(NamedTuple):
    """Runs of one method that differ from others in one option."""

    method: str  # of both
    labeled: int  # their number of labeled images
    option: str  # what differs
    before: tuple[Any, list[Run]]  # the option's value, and the runs that have it
    after: tuple[Any, list[Run]]  # the other value, and its runs
    others: dict[str, Any]  # the options that both have and that are not usual

    @property
    def name(self) -> str:
        """In words: the option, and what it is joined with."""
        joined = "".join(f", with {name} {shown(name, value)}" for name, value in self.others.items())
        return f"{self.option} {shown(self.option, self.before[0])} → {shown(self.option, self.after[0])}{joined}"


def changes(section: Section) -> list[Change]:
    """Return pairs of settings of a method that differ in one option, from the one that is nearer to the usual one."""
    found = []
    for method in section.methods:
        usual = dict(section.usual[method])
        for labeled in section.labeled:
            settings: dict[Options, list[Run]] = {}
            for run in section.runs:
                if (run.method, run.labeled, run.double) == (method, labeled, False):
                    unusual = tuple((name, value) for name, value in run.studied if value != usual.get(name))
                    settings.setdefault(unusual, []).append(run)
            for options, runs in settings.items():
                for option, value in options:
                    others = tuple(pair for pair in options if pair[0] != option)
                    if option in usual and others in settings:
                        before = (usual[option], settings[others])
                        found.append(Change(method, labeled, option, before, (value, runs), dict(others)))
    return sorted(found, key=in_order)


def in_order(change: Change) -> tuple[Any, ...]:
    """Sort methods and options as elsewhere, single changes first, then by value."""
    value = change.after[0]
    return (
        ordered([change.method, *METHODS]).index(change.method),
        len(change.others),
        STUDIED.index(change.option),
        value if isinstance(value, (int, float)) else 0,
        str(value),
        change.labeled,
    )


def studies_table(section: Section) -> str | None:
    """Show what happens when exactly one option of a method is another; None without such runs."""
    lines = [
        [
            f"`{change.method}`",
            change.name,
            str(change.labeled),
            cell(mean_score(before := change.before[1])),
            cell(mean_score(after := change.after[1])),
            cell(Mean.of(late.score - early.score for early, late in paired(before, after)), sign=True),
            cell(Mean.of(run.content.get("miou_unlabeled") for run in after)),
        ]
        for change in changes(section)
    ]
    if not lines:
        return None
    caption = (
        "**Single options.** Runs that differ in one option from the usual ones of their method, or (with) from others "
        "in the table; the difference is over the splits and seeds that both have. Held back: the score on the labels "
        "held back of the images learned from, by which options are chosen."
    )
    return (
        f"{caption}\n\n{markdown(['method', 'option', 'N_l', 'before', 'after', 'difference', 'held back'], lines, 2)}"
    )


def pseudo_labels_table(section: Section) -> str | None:
    """Show weight and precision of every class's pseudo-labels, by option, at the fewest labeled images."""
    labeled = section.labeled[0]
    found = [change for change in changes(section) if change.labeled == labeled]
    groups: list[tuple[str, str, Sequence[Run]]] = []
    for method in section.methods:
        mine = [change for change in found if change.method == method]
        usual = [run for run in section.main if (run.method, run.labeled, run.double) == (method, labeled, False)]
        if mine and any(weights(run) for run in usual):
            groups.append((method, "usual", usual))
            seen = set()
            for change in mine:
                options = {change.option: change.after[0], **change.others}
                name = ", ".join(
                    f"{option} {shown(option, options[option])}" for option in STUDIED if option in options
                )
                if name not in seen:
                    groups.append((method, name, change.after[1]))
                seen.add(name)
    classes = list(dict.fromkeys(name for _, _, runs in groups for run in runs for name in weights(run)))
    if not classes:
        return None
    lines = [
        [f"`{method}`", option, *(beside_each_other(runs, name) for name in classes)] for method, option, runs in groups
    ]
    caption = (
        f"**Pseudo-labels by option.** Mean weight / precision in the last tenth of the steps, N_l = {labeled}: the "
        "weight of the pixels that are given a class, and how many of them are of it."
    )
    return f"{caption}\n\n{markdown(['method', 'option', *map(class_name, classes)], lines, 2)}"


def images_table(section: Section) -> str | None:
    """Show how unlike the test images are: what the worst of them reach; None without percentiles."""
    groups: dict[tuple[int, str, int, str], list[Run]] = {}
    for run in section.runs:
        if run.content.get("iou_percentiles") and not run.double:
            usual = dict(section.usual[run.method])
            options = [f"{name} {shown(name, value)}" for name, value in run.studied if value != usual.get(name)]
            place = ordered([run.method, *METHODS]).index(run.method)
            groups.setdefault((place, run.method, run.labeled, ", ".join(options) or "usual"), []).append(run)
    if not groups:
        return None
    some_run = next(iter(groups.values()))[0]
    percents, classes = (list(names) for names in (some_run.content["iou_percentiles"], some_run.iou_per_class))
    lines = [
        [f"`{method}`", options, str(labeled), *(percentiles(runs, percents, name) for name in classes)]
        for (_, method, labeled, options), runs in sorted(groups.items())
    ]
    caption = (
        f"**Images.** IoU by class at the {', '.join(f'{percent}th' for percent in percents)} percentile of the test "
        "images, mean over splits and seeds, from the lowest IoU up; the best images are above the last."
    )
    header = ["method", "option", "N_l", *map(class_name, classes)]
    return f"{caption}\n\n{markdown(header, lines, 2)}"


def percentiles(runs: Sequence[Run], percents: Sequence[str], name: str) -> str:
    means = [Mean.of(run.content["iou_percentiles"].get(percent, {}).get(name) for run in runs) for percent in percents]
    return " ".join(two_decimals(mean) for mean in means)


def two_decimals(mean: Mean | None) -> str:
    return MISSING if mean is None else f"{mean.mean:.2f}".removeprefix("0")


def weights(run: Run) -> dict[str, float | None]:
    return run.content.get("pseudo_label_weight") or {}


def beside_each_other(runs: Sequence[Run], name: str) -> str:
    """Return weight / precision of a class."""
    means = [
        Mean.of((run.content.get(kind) or {}).get(name) for run in runs)
        for kind in ("pseudo_label_weight", "pseudo_label_precision")
    ]
    return " / ".join(map(two_decimals, means))
