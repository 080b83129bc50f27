"""What an ablation has come to: laws fitted, sentences found, and everything written that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.ablation.ablation import Ablation
from pipeline.ablation.figures import describe_method
from pipeline.ablation.page import DRAWN, write_answers
from pipeline.ablation.power_law import MIN_SIZES, NoFit, PowerLaw, doubling_sentence, fit_power_law
from pipeline.ablation.table import (
    FinalValue,
    Series,
    final_numbers,
    read_table,
    settings_of,
    to_markdown,
    values_by_size,
)
from pipeline.config.run_config import to_toml
from pipeline.report.metric_names import GENERALISATION_GAP

Fitted = dict[Series, PowerLaw | NoFit]


def answer(ablation: Ablation, failures: Sequence[tuple[str, str]]) -> list[str]:
    """Write the page, the figures and the tables from the table of all cells.

    Args:
        ablation: whose table has just been written.
        failures: cells that failed, each with the reason.

    Returns:
        The answers, in lines.

    Raises:
        Refused: the folder cannot be written to, or holds a damaged table.
    """
    table = read_table(ablation.table_file)
    finals = final_numbers(table)
    if not finals:
        return []
    laws = fitted(finals)
    sentences = list(sentences_of(finals, laws))
    about = {
        "name": ablation.root.absolute().name,
        "description": ablation.base.description,
        "match": ablation.match,
        "facts": _facts(ablation, finals),
        "sentences": sentences,
        "unfinished": list(failures),
        "config": to_toml(ablation.base),
    }
    by_name = {(series.setting.text, series.method, series.metric): law for series, law in laws.items()}
    write_answers(ablation.root, table, about, by_name)
    return [to_markdown(finals).rstrip("\n"), *sentences, f"{ablation.root / 'report.html'}"]


def fitted(finals: Sequence[FinalValue]) -> Fitted:
    """A law for each series, or why there is none."""
    return {
        series: fit_power_law(np.array(sizes), np.array(values))
        for series, (sizes, values) in values_by_size(finals).items()
        if series.metric in DRAWN or series.metric == GENERALISATION_GAP
    }


def sentences_of(finals: Sequence[FinalValue], laws: Mapping[Series, PowerLaw | NoFit]) -> Iterator[str]:
    """What doubling the pairs from the largest size would change, for each metric and method that has figures."""
    settings = settings_of(finals)
    num_sizes = max(len({final.size for final in finals if final.series == series}) for series in laws)
    if num_sizes < MIN_SIZES:
        yield (
            f"With {MIN_SIZES} sizes or more, a law would tell what more pairs are expected to change; here "
            f"{'is one' if num_sizes == 1 else f'are {num_sizes}'}."
        )
        return
    for series, law in laws.items():
        title = DRAWN.get(series.metric)
        if title is None:
            continue
        largest = max(final.size for final in finals if final.series == series)
        of = [describe_method(series.method)] if series.method else []
        of += [series.setting.text] if len(settings) > 1 else []
        # Within a sentence; a name keeps its capital.
        words = title if title.startswith("Fréchet") else title[0].lower() + title[1:]
        detail = f" ({', '.join(of)})" if of else ""
        yield doubling_sentence(f"{words}{detail}", law, largest)


def _facts(ablation: Ablation, finals: Sequence[FinalValue]) -> list[tuple[str, str]]:
    cells = {(final.series.setting, final.size, seed) for final in finals for seed, _ in final.seeds}
    steps = sorted({final.step for final in finals})
    return [
        ("teacher", f"{ablation.base.teacher.name}, guidance {ablation.base.teacher.guidance_scale:g}"),
        ("pairs", str(ablation.pairs)),
        ("cells", f"{len(cells)} done"),
        ("training", f"{' / '.join(f'{count:,}' for count in steps)} steps"),
        ("protocols", "; ".join(sorted({final.protocol for final in finals}))),
    ]
