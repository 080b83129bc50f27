"""The answers of an ablation: tables, figures, and one page that holds them all and needs nothing beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ablation.figures import (
    Law,
    Laws,
    comparable_size,
    curves_by_setting,
    curves_by_size,
    describe_method,
    gap_against_size,
    metric_against_size,
)
from pipeline.ablation.table import (
    FinalValue,
    LearningCurve,
    curves,
    final_numbers,
    methods_of,
    settings_of,
    summary_table,
    to_csv,
    to_markdown,
)
from pipeline.report.figure_style import Drawn, draw
from pipeline.report.html import fill
from pipeline.report.metric_names import GENERALISATION_GAP
from shards.storage.files import commit_bytes, list_names, remove

if TYPE_CHECKING:
    import pyarrow
    from matplotlib.figure import Figure

DRAWN = {
    "heldout_token_loss": "Held-out cross-entropy",
    "heldout_token_match": "Held-out token match",
    "frechet_distance": "Fréchet distance",
    "recall": "Recall",
}
"""Metrics that have figures, with their titles."""

MATCHED = {
    "steps": "All cells train for as many steps, so a small set of pairs is gone through more often.",
    "epochs": "All cells go through their pairs as often, so a small set of pairs means fewer steps.",
}
_OURS = re.compile(r"(size|epoch|setting)--.*\.(png|svg)")
"""Names of figures; what else lies in their folder is left alone."""


@dataclass(frozen=True)
class Shown:
    """A figure on its way to the page and to its files."""

    name: str
    words: str
    drawn: Drawn
    remarks: Sequence[str] = field(default=())

    @property
    def data_url(self) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(self.drawn.svg).decode()}"


def write_answers(folder: Path, table: pyarrow.Table, about: Mapping[str, Any], laws: Laws) -> None:
    """Write report.html, figures/*.png and *.svg, table.md and table.csv from what the cells have come to.

    The page is written last: where it lies, what it speaks of is there.

    Args:
        folder: the ablation's.
        table: the long table; cells may be missing.
        about: `name`, `description`, `match` ("steps" or "epochs"), `facts` as (name, text), `sentences` with the
            answers, `unfinished` as (cell, reason), `config` as TOML. Rows of unfinished cells are left out: their
            last step is not their end.
        laws: what was fitted, by setting (`AblationSetting.text`), method and metric; what has a `reason` instead of
            a curve is not drawn, and its reason is printed.

    Raises:
        Refused: the folder cannot be written to.
        Failed: the disk is full, or broke.
    """
    unfinished = {cell for cell, _ in about["unfinished"]}
    finals, ways = final_numbers(table, unfinished), curves(table, unfinished)
    by_size, gap = list(figures_by_size(finals, laws)), list(figures_of_gap(finals, laws))
    on_the_way = [(title, list(figures)) for title, figures in figures_on_the_way(ways)]
    every = [*by_size, *gap, *(figure for _, figures in on_the_way for figure in figures)]
    names = set()
    for figure in every:
        for suffix, data in zip(Drawn._fields, figure.drawn, strict=True):
            commit_bytes(folder / "figures" / f"{figure.name}.{suffix}", data)
            names.add(f"{figure.name}.{suffix}")
    # One of an earlier grid would be taken for one of this.
    for name in list_names(folder / "figures", ""):
        if name not in names and _OURS.fullmatch(name):
            remove(folder / "figures" / name)
    commit_bytes(folder / "table.md", to_markdown(finals).encode())
    commit_bytes(folder / "table.csv", to_csv(finals).encode())
    summary = summary_table(finals)
    page = fill(
        "ablation.html.jinja",
        **{key: about[key] for key in ("name", "description", "facts", "sentences", "unfinished", "config")},
        matched=MATCHED[about["match"]],
        has_spread=any(final.spread is not None for final in finals),
        has_laws=any(isinstance(law, Law) for law in laws.values()),
        table=summary,
        num_keys=summary.header.index("training pairs"),
        protocols=sorted({final.protocol for final in finals if final.series.metric in DRAWN}),
        by_size=by_size,
        on_the_way=on_the_way,
        gap=gap,
    )
    commit_bytes(folder / "report.html", page.encode())


def figures_by_size(finals: Sequence[FinalValue], laws: Laws) -> Iterator[Shown]:
    """Final values against the number of pairs, for each metric and method."""
    for metric, title in DRAWN.items():
        for method in methods_of(finals, metric):
            yield _show(
                _name("size", metric, method),
                f"{_of(title, method)} against the number of training pairs.",
                metric_against_size(finals, metric, method, laws),
                _reasons(finals, metric, method, laws),
            )


def figures_of_gap(finals: Sequence[FinalValue], laws: Laws) -> Iterator[Shown]:
    """The overfitting gap against the number of pairs, where it was measured."""
    if methods_of(finals, GENERALISATION_GAP):
        words = "Overfitting gap (held-out less training cross-entropy) against the number of training pairs."
        figure = gap_against_size(finals, laws)
        yield _show(
            _name("size", GENERALISATION_GAP, None),
            words,
            figure,
            _reasons(finals, GENERALISATION_GAP, None, laws),
        )


def figures_on_the_way(ways: Sequence[LearningCurve]) -> Iterator[tuple[str, Iterator[Shown]]]:
    """For each metric its title and its curves: by size in each setting, then by setting at one size."""
    for metric, title in DRAWN.items():
        if methods_of(ways, metric):
            yield title, _on_the_way(ways, metric, title)


def _on_the_way(ways: Sequence[LearningCurve], metric: str, title: str) -> Iterator[Shown]:
    methods, taken = methods_of(ways, metric), set[str]()
    for setting in settings_of(ways):
        for method in methods:
            if any(curve.series == (setting, method, metric) for curve in ways):
                # Two settings may be written alike where only letters of file names are left.
                name = _name("epoch", metric, method, setting.text)
                names = chain([name], (f"{name}-{number}" for number in count(2)))
                name = next(one for one in names if one not in taken)
                taken.add(name)
                words = f"{_of(title, method)} by epoch, a line for each size; {setting.text}."
                yield _show(name, words, curves_by_size(ways, metric, method, setting))
    for method in methods:
        size = comparable_size(ways, metric, method)
        if size is not None:
            words = f"{_of(title, method)} by epoch, a line for each setting, with {size:,} training pairs."
            name = _name("setting", metric, method)
            yield _show(name, words, curves_by_setting(ways, metric, method, size))


def _show(name: str, words: str, figure: Figure, remarks: Iterable[str] = ()) -> Shown:
    return Shown(name, words, draw(figure), tuple(remarks))


def _name(kind: str, metric: str, method: str | None, setting: str = "") -> str:
    """A file's name, in letters that every system and every LaTeX takes."""
    parts = filter(None, (kind, metric, method, setting.replace("timesteps ", "timesteps-")))
    return "--".join(re.sub(r"[^A-Za-z0-9_.+-]+", "-", part) for part in parts)[:120]


def _of(title: str, method: str | None) -> str:
    return f"{title} of {describe_method(method)}" if method else title


def _reasons(finals: Sequence[FinalValue], metric: str, method: str | None, laws: Laws) -> Iterator[str]:
    """Why there is no curve, where a law was looked for in vain; settings of the same reason together."""
    settings = settings_of(finals)
    found: dict[str, list[str]] = {}
    for setting in settings:
        reason = getattr(laws.get((setting.text, method, metric)), "reason", None)
        if reason is not None:
            found.setdefault(str(reason).rstrip("."), []).append(setting.text)
    for reason, texts in found.items():
        whom = "" if len(texts) == len(settings) else f" for {' or '.join(texts)}"
        yield f"No law{whom}: {reason}."
