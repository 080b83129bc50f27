"""The report of an ablation: tables, figures, and one HTML page that contains them all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.ablation.figures import (
    Laws,
    comparable_size,
    curves_by_setting,
    curves_by_size,
    describe_method,
    metric_against_size,
)
from pipeline.ablation.power_law import NoFit
from pipeline.ablation.table import (
    FinalValue,
    LearningCurve,
    Series,
    final_values,
    learning_curves,
    methods_of,
    settings_of,
    summary_table,
    to_csv,
)
from pipeline.report.figure_style import FigureFiles, draw
from pipeline.report.html import data_url, render_template
from pipeline.report.metric_names import GENERALISATION_GAP
from shards.storage.files import commit_bytes, list_names, remove

if TYPE_CHECKING:
    import pyarrow

PLOTTED_METRICS = {
    "heldout_token_loss": "Held-out cross-entropy",
    "heldout_token_match": "Held-out token match",
    "frechet_distance": "Fréchet distance",
    "recall": "Recall",
}
"""Metrics with figures, and their titles."""

MATCHED = {
    "steps": "All cells train for the same number of steps, so a smaller set of pairs is used for more passes.",
    "epochs": "All cells make the same number of passes over their pairs, so a smaller set of pairs means fewer steps.",
}
_FIGURE_NAME = re.compile(r"(size|epoch|setting)--.*\.(png|svg)")
"""Names of figure files; other files in the folder are kept."""


class PageFigure(NamedTuple):
    """A figure with its file name, caption and remarks."""

    name: str
    caption: str
    files: FigureFiles
    remarks: Sequence[str] = ()

    @property
    def url(self) -> str:
        return data_url("image/svg+xml", self.files.svg)


def write_report_files(folder: Path, table: pyarrow.Table, about: Mapping[str, Any], laws: Laws) -> None:
    """Write report.html, figures/*.png and *.svg, table.md and table.csv; the page last, when the others exist.

    Args:
        folder: the ablation's folder.
        table: the long table; cells may be missing.
        about: `name`, `description`, `match` ("steps" or "epochs"), `facts` as (name, text), `sentences` with the
            conclusions, `unfinished` as (cell, reason), `config` as TOML. Rows of unfinished cells are left out, because
            their last step is not the end of their training. The sentences are also below the table in table.md.
        laws: checked laws; the reason of a `NoFit` is printed.

    Raises:
        Refused: the folder cannot be written to.
        Failed: the disk is full or failed.
    """
    unfinished = {cell for cell, _ in about["unfinished"]}
    finals, curves = final_values(table, unfinished), learning_curves(table, unfinished)
    by_size = [*chain.from_iterable(_figures_by_size(finals, laws, *plotted) for plotted in PLOTTED_METRICS.items())]
    gap_title = "Overfitting gap (held-out less training cross-entropy)"
    gap = list(_figures_by_size(finals, laws, GENERALISATION_GAP, gap_title))
    by_epoch = [
        (title, list(_figures_by_epoch(curves, metric, title)))
        for metric, title in PLOTTED_METRICS.items()
        if methods_of(curves, metric)
    ]
    _write_figures(folder / "figures", [*by_size, *gap, *chain.from_iterable(group for _, group in by_epoch)])
    summary = summary_table(finals)
    lines = [*summary.markdown(), "", *(f"- {sentence}" for sentence in about["sentences"])]
    commit_bytes(folder / "table.md", "".join(f"{line}\n" for line in lines).encode())
    commit_bytes(folder / "table.csv", to_csv(finals).encode())
    page = render_template(
        "ablation.html.jinja",
        **{key: about[key] for key in ("name", "description", "facts", "sentences", "unfinished", "config")},
        matched=MATCHED[about["match"]],
        has_spread=any(final.spread is not None for final in finals),
        has_laws=any(not isinstance(test.law, NoFit) for test in laws.values()),
        table=summary,
        protocols=sorted({final.protocol for final in finals if final.series.metric in PLOTTED_METRICS}),
        by_size=by_size,
        by_epoch=by_epoch,
        gap=gap,
    )
    commit_bytes(folder / "report.html", page.encode())


def _write_figures(folder: Path, figures: Iterable[PageFigure]) -> None:
    """Write the files of all figures, and remove those of an earlier grid."""
    names = set()
    for figure in figures:
        for suffix, data in figure.files._asdict().items():
            commit_bytes(folder / f"{figure.name}.{suffix}", data)
            names.add(f"{figure.name}.{suffix}")
    for name in list_names(folder, ""):
        if name not in names and _FIGURE_NAME.fullmatch(name):
            remove(folder / name)


def _figures_by_size(finals: Sequence[FinalValue], laws: Laws, metric: str, title: str) -> Iterator[PageFigure]:
    """Final values of a metric against the number of pairs, for each method."""
    for method in methods_of(finals, metric):
        name, caption = _file_name("size", metric, method), f"{_of(title, method)} against the number of training pairs."
        figure = draw(metric_against_size(finals, metric, method, laws))
        yield PageFigure(name, caption, figure, tuple(_reasons(finals, metric, method, laws)))


def _figures_by_epoch(curves: Sequence[LearningCurve], metric: str, title: str) -> Iterator[PageFigure]:
    """The curves of a metric: by size in each setting, then by setting at one size."""
    methods, used_names = methods_of(curves, metric), set[str]()
    for setting in settings_of(curves):
        for method in methods:
            if any(curve.series == (setting, method, metric) for curve in curves):
                # Two settings can have the same name after the replacement of special characters.
                stem = _file_name("epoch", metric, method, setting.text)
                candidates = chain([stem], (f"{stem}-{number}" for number in count(2)))
                name = next(candidate for candidate in candidates if candidate not in used_names)
                used_names.add(name)
                caption = f"{_of(title, method)} by epoch, a line for each size; {setting.text}."
                yield PageFigure(name, caption, draw(curves_by_size(curves, metric, method, setting)))
    for method in methods:
        size = comparable_size(curves, metric, method)
        if size is not None:
            caption = f"{_of(title, method)} by epoch, a line for each setting, with {size:,} training pairs."
            name = _file_name("setting", metric, method)
            yield PageFigure(name, caption, draw(curves_by_setting(curves, metric, method, size)))


def _file_name(kind: str, metric: str, method: str | None, setting: str = "") -> str:
    """A file name of characters that all file systems and LaTeX accept."""
    parts = filter(None, (kind, metric, method, setting.replace("timesteps ", "timesteps-")))
    return "--".join(re.sub(r"[^A-Za-z0-9_.+-]+", "-", part) for part in parts)[:120]


def _of(title: str, method: str | None) -> str:
    return f"{title} of {describe_method(method)}" if method else title


def _reasons(finals: Sequence[FinalValue], metric: str, method: str | None, laws: Laws) -> Iterator[str]:
    """Why there is no law, with the settings of each reason."""
    settings = settings_of(finals)
    by_reason, has_missed = defaultdict(list), False
    for setting in settings:
        test = laws.get(Series(setting, method, metric))
        if test and isinstance(test.law, NoFit):
            by_reason[test.law.reason].append(setting.text)
            has_missed |= test.missed is not None
    for reason, texts in by_reason.items():
        scope = "" if len(texts) == len(settings) else f" for {' or '.join(texts)}"
        yield f"No law{scope}: {reason}."
    if has_missed:
        yield "The faint dashed curve is the law of the smaller sizes."
