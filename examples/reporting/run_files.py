"""What the folder of a run holds: config.json, status.json, metrics.jsonl, result.json once there is one, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from examples.config import Config
from examples.json_files import parse_json, read_json
from examples.reporting.run_plots import Series
from examples.typed_fields import known_fields

IDENTITY = ("dataset", "method", "labeled", "split", "seed")  # options that a page names


@dataclass(frozen=True)
class RunFiles:
    """What the folder of a run holds."""

    folder: Path  # the run's
    options: dict[str, Any]  # the configuration
    status: dict[str, Any]  # what was last known of a run, finished or not; empty where there is no status.json
    series: Series  # all measures of metrics.jsonl
    result: dict[str, Any] | None  # result.json, if there is one

    @property
    def step(self) -> int:
        """The last that is known of."""
        logged = (points[-1][0] for by_name in self.series.values() for points in by_name.values())
        return max(self.status.get("step", 0), *logged, 0)

    @property
    def iterations(self) -> int | None:
        found = (self.result or self.status).get("iterations")
        return found if found is None else int(found)

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """Where it has taken place, the last one last."""
        if self.result and "environment" in self.result:
            return [*self.result.get("earlier_environments", ()), self.result["environment"]]
        return list(self.status.get("environments", ()))

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the validation whose network is kept: of equals the last."""
        points = self.series.get("validation", {}).get("miou", [])
        return max(points, key=lambda point: (point[1], point[0]), default=None)

    def at(self, kind: str, name: str, step: int) -> float | None:
        return dict(self.series.get(kind, {}).get(name, ())).get(step)

    def pseudo_label(self, measure: str, name: str) -> float | None:
        """Return a measure of a class's pseudo-labels: over the last tenth of a finished run, or as last logged."""
        kind = f"pseudo_label_{measure}"
        if self.result:
            return (self.result.get(kind) or {}).get(name)
        points = self.series.get(kind, {}).get(name)
        return points[-1][1] if points else None

    @property
    def evaluated(self) -> list[str]:
        """The classes, or the labels they are fused to, as an evaluation names them."""
        if self.result:
            return list(self.result["iou_per_class"])
        return self.status.get("evaluated") or [name for name in self.series.get("validation", ()) if name != "miou"]

    @property
    def assigned(self) -> list[str]:
        """The classes that pseudo-labels name, the background last; empty if there are none."""
        found = [name for name in self.series.get("pseudo_label_share", ()) if name != "background"]
        order = {name: place for place, name in enumerate(self.status.get("learned", ()))}
        return [*sorted(found, key=lambda name: order.get(name, len(order))), "background"] if found else []


def read_run(folder: Path) -> RunFiles:
    """Read what there is."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"RUN: {folder} holds no config.json, expected the folder of a run of examples.train")
    options = read_object(path)
    environment = options.pop("environment", None)
    if missing := [name for name in IDENTITY if name not in options]:
        raise ValueError(f"{path} holds no {', '.join(missing)}, expected the options of a run of examples.train")
    try:
        known_fields(Config, options)
    except ValueError as error:
        raise ValueError(f"{path} holds what is no option of a run ({error})") from error
    status = read_object(folder / "status.json") if (folder / "status.json").is_file() else {}
    if environment:
        status.setdefault("environments", [environment])
    result = read_object(folder / "result.json") if (folder / "result.json").is_file() else None
    return RunFiles(folder, options, status, read_series(folder / "metrics.jsonl"), result)


def read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def read_series(path: Path) -> Series:
    """Read the lines of metrics.jsonl; one that was written by halves, or is no line of a log, is left out."""
    series: Series = {}
    for step, kind, values in map(read_line, path.read_text(errors="replace").splitlines() if path.is_file() else ()):
        for name, value in values.items():
            series.setdefault(kind, {}).setdefault(name, []).append((step, value))
    return series


def read_line(text: str) -> tuple[int, str, dict[str, float]]:
    """Return step, kind and values of a line of metrics.jsonl; of one that is none, no values."""
    try:
        line = parse_json(text)
        step, kind = int(line.pop("step")), str(line.pop("kind"))
        return step, kind, {name: float(value) for name, value in line.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, "", {}
