"""The numbers of docs/toy_tightness.md, from the committed run folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.toy.config import Model
from experiments.toy.report import (
    REFERENCE_TIGHTNESS,
    Results,
    error_table,
    form_table,
    init_table,
    lipsdp_table,
    seed_table,
    tightness_table,
)
from robustnn.report import Interval, bootstrap_interval, format_interval
from robustnn.runs import RunFolder

NAMES = ("tightness", "errors", "spread", "data", "long", "lipsdp", "init")


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folders are, `toy_tightness` and those with a suffix.

    Returns:
        Markdown text of every block.
    """
    full, long, spread, data = (
        Results(RunFolder.open(folder / f"toy_tightness{suffix}"))
        for suffix in ("", "_long", "_spread", "_published_data")
    )
    texts = (
        _tightness(full),
        error_table(full).markdown(),
        _spread(spread),
        _data(data),
        _long(full, long),
        f"{lipsdp_table(full).markdown()}\n\n{_seeds(full)}",
        init_table(full).markdown(),
    )
    return dict(zip(NAMES, texts, strict=True))


def _tightness(results: Results) -> str:
    config = results.config
    ours, paper = [], []
    for gamma in config.gammas:
        ours.append(f"{results.tightness(Model('sandwich', gamma)).mean():.1f}")
        paper.append(f"{REFERENCE_TIGHTNESS['sandwich'][gamma][0]:.1f}")
    found = [results.values(m, "gain") / results.values(m, "constant") for m in config.models]
    largest = max(results.tightness(model).max() for model in config.models)
    return "\n".join(
        (
            tightness_table(results).markdown(),
            "",
            f"The sandwich network uses {' / '.join(ours)} % of its bound at γ = "
            f"{' / '.join(f'{gamma:g}' for gamma in config.gammas)} (mean of {len(config.seeds)} seeds); the paper has "
            f"{' / '.join(paper)} %.",
            f"No network exceeds its bound: the largest exact value of all {len(config.models) * len(config.seeds)} "
            f"networks is {largest:.4f} %.",
            "The search finds the constant: the largest relative difference between the two is "
            f"{1 - min(share.min() for share in found):.0e}.",
        )
    )


def _spread(results: Results) -> str:
    gamma = results.config.init_gamma
    paper = REFERENCE_TIGHTNESS["sandwich"][gamma][0]
    ours, published = (results.tightness(Model("sandwich", gamma, layerwise=form)) for form in (False, True))
    distance = (paper - published.mean()) / published.std(ddof=1)
    return "\n".join(
        (
            form_table(results).markdown(),
            "",
            f"Trained layer by layer, as published, the mean of {len(published)} seeds is {published.mean():.1f} %; "
            f"the paper's {paper:g} % is {distance:.1f} standard deviations of a single run above it.",
            "On the same seed, which is the same data, weights and batches, the two ways of training end "
            f"{np.abs(ours - published).mean():.1f} % of the bound apart (mean; at most "
            f"{np.abs(ours - published).max():.1f} %).",
        )
    )


def _data(results: Results) -> str:
    gammas = results.config.gammas
    shares = [_text(bootstrap_interval(results.tightness(Model("sandwich", gamma)))) for gamma in gammas]
    return (
        f"On the samples that the published code draws, the same for all {len(results.config.seeds)} seeds, the "
        f"sandwich network uses {' / '.join(shares)} % of its bound at γ = {' / '.join(f'{g:g}' for g in gammas)}."
    )


def _long(full: Results, long: Results) -> str:
    model = Model("sandwich", long.config.init_gamma)
    values = [_text(bootstrap_interval(results.tightness(model))) for results in (full, long)]
    errors = [results.values(model, "test_mse").mean() for results in (full, long)]
    return (
        f"Trained for {long.config.epochs} instead of {full.config.epochs} epochs on the same data, the sandwich "
        f"network at γ = {model.gamma:g} uses {values[1]} % of its bound instead of {values[0]} %; the mean test "
        f"error is {errors[1]:.4f} instead of {errors[0]:.4f}."
    )


def _seeds(results: Results) -> str:
    model = Model("sandwich", results.config.init_gamma)
    bounds, constants = results.values(model, "lipsdp"), results.values(model, "constant")
    return "\n".join(
        (
            seed_table(results).markdown(),
            "",
            f"The bounds are between {bounds.min():.3f} and {bounds.max():.3f}, on average {bounds.mean():.3f}, and "
            f"{100 * (bounds / constants - 1).mean():.1f} % above the constant. {int((bounds < 9.7).sum())} of "
            f"{len(bounds)} are below 9.7.",
        )
    )


def _text(interval: Interval) -> str:
    return format_interval(interval, 1)
