"""report.html: all there is to see of one run, in one file that needs no other.

It is made of what the folder of the run holds (see ``run_files``). So it can be made at any time, of a run under way or
one that died as well.
"""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jinja2 import TemplateError

from examples.config import defaults
from examples.engine.checkpoint import atomic_write
from examples.engine.resuming import changes
from examples.logging.environment import flat
from examples.reporting.run_files import RunFiles, read_run
from examples.reporting.run_plots import class_colors, draw_losses, draw_pseudo_labels, draw_validation
from examples.reporting.templates import template

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NEXT_TO_NOTHING = 0.01  # of a mean weight
OFTEN_WRONG = 0.5  # of a precision
LIGHTER = {
    "rpg": "; try a smaller --k",
    "rpg_plus": "; try a smaller --k",
    "fixmatch": "; try a lower --threshold",
    "pseudolabel": "; try a lower --threshold",
}

PAGE = template("run_page.html")


def write_page(folder: Path) -> Path:
    """Write report.html into the folder of a run, and return its path."""
    path, run = folder / "report.html", read_run(folder)
    try:
        text = page(run)
    except (ArithmeticError, AttributeError, LookupError, TypeError, TemplateError) as error:
        raise ValueError(
            f"{folder}: status.json or result.json is not what a run writes ({type(error).__name__}: {error})"
        ) from error
    atomic_write(path, text.encode(errors="replace"), flush=False)
    return path


def page(run: RunFiles) -> str:
    """Return the page as HTML; everything that comes from the run is escaped."""
    options, best = run.options, run.best
    state, reason = state_of(run)
    facts = {
        "steps": f"{run.step:,}" + (f" of {run.iterations:,}" if run.iterations and run.step < run.iterations else ""),
        "data": (run.result or run.status).get("data"),
        "took": duration(run.result["seconds"]) if run.result else None,
        "commit": run.environments[-1]["commit"] if run.environments else None,
        "as of": run.status.get("written"),
    }
    return PAGE.render(
        title=f"{options['method']} on {options['dataset']}",
        setting=f"{options['labeled']} labeled images, split {options['split']}, seed {options['seed']}",
        state=state,
        reason=reason,
        facts={name: value for name, value in facts.items() if value},
        scores=scores(run, best),
        warnings=[*warnings(run)],
        swatches=dict(zip(run.evaluated, class_colors(run.evaluated).values(), strict=True)),
        pictures=[*shown_pictures(run)],
        classes=class_table(run, best),
        worst=[*((run.result or {}).get("worst_images") or {}).items()],
        plots=[
            (caption, data_uri("image/svg+xml", curves.encode()))
            for caption, draw, names in (
                ("Losses: each point a mean of 20 steps, and a running mean", draw_losses, run.evaluated),
                ("IoU on the validation images", draw_validation, run.evaluated),
                ("Pseudo-labels, judged by held-back labels: running means", draw_pseudo_labels, run.assigned),
            )
            if (curves := draw(run.series, names, run.iterations))
        ],
        changed=changed_options(options),
        unchanged=[name for name, value in options.items() if is_default(options, name, value)],
        options=options,
        environment=flat(run.environments[-1]) if run.environments else {},
        command=f"python -m examples.train --config {run.folder / 'config.json'} --out AGAIN",
    )  # fmt: skip


HEADINGS = {
    "test": "Test images, by the network that was best on the validation images",
    "worst": "Test images with the lowest IoU",
    "validation": "Validation images",
    "unlabeled": "Unlabeled images, beside what was held back",
    "labeled": "Labeled images",
}


def shown_pictures(run: RunFiles) -> Iterable[dict[str, Any]]:
    """Return the parts of the data that there are pictures of, the test images first."""
    drawn = run.status.get("pictures", {})
    for part, heading in HEADINGS.items():
        if part in drawn:
            yield {
                "heading": heading
                + ("" if part in ("test", "worst", "labeled") else f", step {drawn[part]['step']:,}"),
                "columns": drawn[part]["columns"],
                "rows": [
                    {**row, "source": source} for row in drawn[part]["rows"] if (source := embedded(run, row["file"]))
                ],
            }


def state_of(run: RunFiles) -> tuple[str, str | None]:
    """Return the state in a word, and what there is to say about it."""
    if run.result:
        return "finished", None
    if run.status.get("state") == "stopped":
        return "stopped", run.status.get("reason")
    if is_claimed(run.folder):
        return "under way", None
    return (
        "died",
        f"it ended without a message after step {run.step:,}; the same command goes on from its last checkpoint",
    )


def is_claimed(folder: Path) -> bool:
    """Return whether a process holds the folder (see ``run_folder.lock_run_dir``)."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be written here, and so nobody trains in it
        return False


def scores(run: RunFiles, best: tuple[int, float] | None) -> list[tuple[str, float, str]]:
    """Return the figures that come first: name, value, remark."""
    shown = []
    if run.result:
        ranks = run.result.get("score", "miou")
        for key, name, remark in (
            ("miou", "test IoU per image", "mean over images, then classes"),
            ("miou_pooled", "test IoU pooled", "all images' pixels together, mean over classes"),
        ):
            if run.result[key] is not None:  # none of the classes is in any test image
                shown.append((name, run.result[key], remark + "; ranks methods here" * (key == ranks)))
    if best:
        shown.append(("best validation IoU", best[1], f"step {best[0]:,}"))
    return shown


def warnings(run: RunFiles) -> Iterable[str]:
    """Say what a reader has to know before believing the figures, and what to do about it."""
    for before, now in zip(run.environments, run.environments[1:], strict=False):
        yield f"It went on elsewhere, and may end elsewhere than uninterrupted: {'; '.join(changes(before, now))}."
    commit = str(run.environments[-1].get("commit")) if run.environments else "unknown"
    if commit.endswith("-dirty"):
        yield "The code was not committed (its commit ends in -dirty): nobody else can run the same."
    elif commit == "unknown":
        yield "The code was in no git checkout: which one it was is not known."
    yield from weak_pseudo_labels(run)
    validations = run.series.get("validation", {}).get("miou", [])
    if run.result and len(validations) == 1:
        yield "There was one validation alone: the network tested is simply the last. Lower --eval-every to choose one."
    elif run.result and len(validations) > 2 and run.best == validations[-1]:
        yield "The last validation was the best: training for longer may give more."
    missed = [name for name in run.evaluated if run.best and run.at("validation", name, run.best[0]) == 0]
    if missed:
        yield f"Not found in any validation image: {listed(missed)}."


def weak_pseudo_labels(run: RunFiles) -> Iterable[str]:
    """Name classes whose pseudo-labels teach next to nothing, or mostly what is wrong."""
    names = run.assigned
    weights = {name: run.pseudo_label("weight", name) for name in names}
    never = [name for name in names if weights[name] is None]
    if never:
        yield f"No pixel was given the pseudo-label {listed(never)}: unlabeled images teach nothing about it."
    light = [name for name in names if (weight := weights[name]) is not None and weight < NEXT_TO_NOTHING]
    if light:
        advice = LIGHTER.get(run.options["method"], "")
        yield (
            f"Pseudo-labels of {listed(light)} weigh next to nothing (mean weight below {NEXT_TO_NOTHING}), so that"
            f" unlabeled images teach next to nothing about them{advice}."
        )
    wrong = [
        f"{name} ({precision:.2f})"
        for name in names
        if (precision := run.pseudo_label("precision", name)) is not None
        and precision < OFTEN_WRONG
        and name not in light
    ]
    if wrong:
        yield f"Pseudo-labels that are wrong more often than right (precision): {listed(wrong)}."


def listed(names: Sequence[str], most: int = 8) -> str:
    names = [name.replace("_", " ") for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def class_table(run: RunFiles, best: tuple[int, float] | None) -> dict[str, Any]:
    """Return headings and, by class, figures (None where there is none); and which steps pseudo-labels are of."""
    columns: dict[str, dict[str, float | None]] = {}
    if run.result:
        result = run.result
        columns["test IoU per image"] = {**result["iou_per_class"], MEAN: result["miou"]}
        columns["test IoU pooled"] = {**result["iou_per_class_pooled"], MEAN: result["miou_pooled"]}
        for key, heading in (("dice_per_class", "test Dice per image"), ("hd95_px_per_class", "test HD95, pixels")):
            if key in result:
                known = [value for value in result[key].values() if value is not None]
                columns[heading] = {**result[key], MEAN: statistics.fmean(known) if known else None}
    if best:
        there = {name: run.at("validation", name, best[0]) for name in run.evaluated}
        columns[f"validation IoU, step {best[0]:,}"] = {**there, MEAN: best[1]}
    for measure, heading in MEASURES.items():
        if run.assigned:
            columns[heading] = {name: run.pseudo_label(measure, name) for name in run.assigned}
    names = list(dict.fromkeys([*run.evaluated, *run.assigned]))
    rows = {name: [column.get(name) for column in columns.values()] for name in [*names, MEAN] if columns}
    when = "over the last tenth of the run" if run.result else "over the steps logged last"
    return {"headings": list(columns), "rows": rows, "when": when if run.assigned else None}


MEAN = "mean over classes"
MEASURES = {
    "precision": "pseudo-label precision",
    "recall": "pseudo-label recall",
    "weight": "mean weight",
    "weight_share": "part of the weight",
    "true_share": "part of the pixels",
}


def changed_options(options: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return name, value and default of the options that have another value."""
    usual = defaults(options["dataset"])
    return [(name, value, usual.get(name)) for name, value in options.items() if not is_default(options, name, value)]


def is_default(options: Mapping[str, Any], name: str, value: Any) -> bool:
    """Compare as text: k = 1 is one neighbor and k = 1.0 all of them."""
    return name != "dataset" and json.dumps(defaults(options["dataset"]).get(name)) == json.dumps(value)


def config_table(options: Mapping[str, Any]) -> str:
    """Return the options as Markdown, those that are not the defaults first."""
    changed = [f"| **{name}** | {code(value)} | {code(usual)} |" for name, value, usual in changed_options(options)]
    rest = [f"| {name} | {code(value)} | |" for name, value in options.items() if is_default(options, name, value)]
    return "\n".join(["| option | value | default |", "|---|---|---|", *changed, *rest])


def code(value: Any) -> str:
    return f"`{str(value).replace('|', chr(92) + '|')}`"


def embedded(run: RunFiles, file: str) -> str | None:
    """Return a picture of the run as a data URI; None where it is gone, or is no PNG file within the run's folder."""
    path = (run.folder / file).resolve()
    if not path.is_relative_to(run.folder.resolve()) or not path.is_file():
        return None
    content = path.read_bytes()
    return data_uri("image/png", content) if content.startswith(PNG_SIGNATURE) else None


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
