"""The conclusions of an ablation: fits the power laws, writes the report, and describes the results in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.ablation.ablation import Ablation
from pipeline.ablation.back_test import back_test, sentence
from pipeline.ablation.figures import Laws, describe_method
from pipeline.ablation.page import PLOTTED_METRICS, write_report_files
from pipeline.ablation.power_law import MIN_SIZES
from pipeline.ablation.table import FinalValue, final_values, read_table, settings_of, summary_table, values_by_size
from pipeline.config.run_config import to_toml
from pipeline.report.metric_names import GENERALISATION_GAP


def write_conclusions(ablation: Ablation, failures: Sequence[tuple[str, str]]) -> list[str]:
    """Write the page, the figures and the tables from the long table, which `write_table` must have written.

    Args:
        ablation: the ablation.
        failures: failed cells, each with the reason.

    Returns:
        Lines to print: the summary table, the sentences, and the path of the page.

    Raises:
        Refused: the folder cannot be written to, or the table is damaged.
    """
    table = read_table(ablation.table_file)
    finals = final_values(table)
    if not finals:
        return []
    # A checked power law for each series that has a figure, or the reason why there is none.
    laws = {
        series: back_test(np.array(sizes), np.array(values))
        for series, (sizes, values) in values_by_size(finals).items()
        if series.metric in PLOTTED_METRICS or series.metric == GENERALISATION_GAP
    }
    sentences = list(_sentences(finals, laws))
    about = {
        "name": ablation.root.absolute().name,
        "description": ablation.base.description,
        "match": ablation.match,
        "facts": _facts(ablation, finals),
        "sentences": sentences,
        "unfinished": list(failures),
        "config": to_toml(ablation.base),
    }
    write_report_files(ablation.root, table, about, laws)
    return [*summary_table(finals).markdown(), *sentences, f"{ablation.root / 'report.html'}"]


def _sentences(finals: Sequence[FinalValue], laws: Laws) -> Iterator[str]:
    """The expected effect of doubling the pairs from the largest size, for each metric and method with figures."""
    settings = settings_of(finals)
    num_sizes = max(len({final.size for final in finals if final.series == series}) for series in laws)
    if num_sizes < MIN_SIZES:
        yield (
            f"With {MIN_SIZES} sizes or more, a power law can predict the effect of more pairs; "
            f"this ablation has {num_sizes}."
        )
        return
    for series, test in laws.items():
        title = PLOTTED_METRICS.get(series.metric)
        if title is None:
            continue
        details = [describe_method(series.method)] if series.method else []
        details += [series.setting.text] if len(settings) > 1 else []
        # Inside a sentence only a proper name has a capital letter.
        metric = title if title.startswith("Fréchet") else title[0].lower() + title[1:]
        yield sentence(f"{metric} ({', '.join(details)})" if details else metric, test)


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
