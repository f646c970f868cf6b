"""Tables and figures of the robustness study, from its run folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robustness_study import controllers
from experiments.robustness_study.config import ATTACKS, LEARNED, Method
from experiments.robustness_study.figures import curves_figure, frontier_figure, gamma_figure
from experiments.robustness_study.results import COMMON, WORST, Results, swing_up_key, upright_key
from robustnn.report import (
    Interval,
    Table,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    format_number,
    paired_difference,
    style,
)
from robustnn.runs import RunFolder

TITLES = {
    **ATTACKS,
    WORST: "worst of all, per episode",
    COMMON: "worst of the common attacks",
    LEARNED: "learned adversary",
}
_STATISTICS = {
    "mean": "Mean return",
    "iqm": "Interquartile mean of the return",
    "worst_decile": "Mean return of the worst tenth of the episodes",
}
# At the same nominal return: the recipe may lose so much of a control's.
_EQUAL = 0.03


def return_table(results: Results, methods: Sequence[Method], attack: str, statistic: str = "mean") -> Table:
    """Return with its 95 % interval under one attack: one row per method, one column per eps."""
    eps = (0.0, *results.config.eps)
    rows = []
    for method in methods:
        cells = [format_interval(results.interval(method, attack, e, statistic), 0) for e in eps]
        rows.append((method.label, *cells))
    return Table(("policy", *(f"eps {e:g}" for e in eps)), tuple(rows))


def attack_table(results: Results, eps: float) -> Table:
    """Mean return under every attack at one size: one row per method, one column per attack."""
    config = results.config
    attacks = (*config.attacks, *config.more_attacks, WORST)
    rows = []
    for method in config.methods:
        made = (*config.attacks_on(method), WORST)
        means = [float(results.returns(method, a, eps).mean()) if a in made else None for a in attacks]
        rows.append((method.label, *("-" if mean is None else format_number(mean) for mean in means)))
    return Table(("policy", *(TITLES[attack] for attack in attacks)), tuple(rows))


def floor_table(results: Results) -> Table:
    """For every attack and size: the number of methods it hurts more than uniform noise, judged by intervals."""
    rows = []
    config = results.config
    for attack in (*config.attacks, *config.more_attacks):
        if attack == "uniform":
            continue
        methods = [method for method in config.methods if attack in config.attacks_on(method)]
        cells = []
        for eps in results.config.eps:
            differences = [
                paired_difference(results.returns(m, attack, eps), results.returns(m, "uniform", eps))
                for m in methods
            ]
            stronger = sum(one.high < 0.0 for one in differences)
            weaker = sum(one.low > 0.0 for one in differences)
            cells.append(f"{stronger} / {weaker} of {len(methods)}")
        rows.append((TITLES[attack], *cells))
    return Table(("attack", *(f"eps {eps:g}" for eps in results.config.eps)), tuple(rows))


def learned_table(results: Results) -> Table:
    """Mean return under the learned adversary beside that under noise and the worst of the other attacks."""
    config = results.config
    rows = []
    for index in config.learned:
        method = config.methods[index]
        for eps in config.learned_eps:
            uniform, worst = (
                results.returns(method, attack, eps)[: config.learned_seeds] for attack in ("uniform", WORST)
            )
            learned = results.learned(method, eps)
            rows.append(
                (
                    method.label,
                    f"{eps:g}",
                    *(format_number(float(v.mean())) for v in (learned, uniform, worst)),
                    format_interval(paired_difference(learned, uniform), 1),
                )
            )
    header = (
        "policy", "eps", "learned adversary", "uniform in the ball", "worst of the others", "learned less uniform",
    )  # fmt: skip
    return Table(header, tuple(rows))


def condition_table(results: Results) -> Table:
    """Mean return with its interval under delays and faults."""
    names = conditions(results)
    rows = []
    for method in results.config.methods:
        cells = [format_interval(bootstrap_interval(results.condition(method, name)), 0) for name in names]
        rows.append((method.label, *cells))
    return Table(("policy", *names), tuple(rows))


def conditions(results: Results) -> list[str]:
    """Titles of the faults, delays among them."""
    return list(results.config.faults)


def recipe_table(results: Results) -> Table:
    """The recipe against every control: nominal return, and return under the worst attack, with a verdict each.

    "above" and "below" mark intervals that do not overlap.
    """
    return _against_recipe(results, results.config.controls)


def twin_table(results: Results) -> Table:
    """The recipe beside the other methods with the same training; columns and marks as in `recipe_table`."""
    return _against_recipe(results, results.config.twins)


def _against_recipe(results: Results, others: Sequence[int]) -> Table:
    config = results.config
    recipe = config.methods[config.recipe]
    sizes = [eps for eps in config.eps if eps >= config.claimed_from]
    rows = []
    for method in (recipe, *(config.methods[k] for k in others)):
        cells = []
        for eps in (0.0, *sizes):
            ours, theirs = (results.interval(m, WORST, eps) for m in (recipe, method))
            cells.append(
                format_interval(theirs, 0) + ("" if method is recipe else f" {verdict(ours, theirs)}")
            )
        rows.append((method.label, *cells))
    return Table(("policy", "nominal", *(f"eps {eps:g}" for eps in sizes)), tuple(rows))


def verdict(ours: Interval, theirs: Interval) -> str:
    """Return where the recipe is: "above", "below", or "overlap"."""
    if ours.low > theirs.high:
        return "(recipe above)"
    return "(recipe below)" if ours.high < theirs.low else "(overlap)"


def gamma_table(results: Results) -> Table:
    """At which bound, if any, does an LBDN trained like the controls beat them? One row per condition.

    For every control the bounds whose interval lies above the control's, of LBDN policies with PPO alone.
    """
    config = results.config
    bounded = config.bounded
    names = [(title, k) for k, title in _control_titles(results).items()]
    rows = []
    for title, scores in _conditions(results):
        cells = []
        for _, k in names:
            control = bootstrap_interval(scores(config.methods[k]))
            better = [m for m in bounded if bootstrap_interval(scores(m)).low > control.high]
            cells.append(", ".join(_bound(m) for m in better) or "none")
        best = max(bounded, key=lambda m: float(scores(m).mean()))
        rows.append(
            (title, f"{_bound(best)}: {format_interval(bootstrap_interval(scores(best)), 0)}", *cells)
        )
    return Table(("condition", "best LBDN", *(f"above {title}" for title, _ in names)), tuple(rows))


def _control_titles(results: Results) -> dict[int, str]:
    methods = results.config.methods
    return {k: methods[k].label for k in results.config.controls if methods[k].network != "lbdn"}


def _bound(method: Method) -> str:
    return f"γ={method.lipschitz:g}" + (" (normalised)" if method.normalised else "")


def _conditions(results: Results) -> list[tuple[str, Any]]:
    """Titles of all conditions with functions from a method to its returns."""
    config = results.config
    found: list[tuple[str, Any]] = [("no perturbation", results.returns)]
    for attack in (*config.attacks, COMMON):
        found += [
            (f"{TITLES[attack]}, eps {eps:g}", lambda m, a=attack, e=eps: results.returns(m, a, e))
            for eps in config.eps
        ]
    found += [(name, lambda m, n=name: results.condition(m, n)) for name in conditions(results)]
    return found


def fact_table(results: Results) -> Table:
    """Constants, the gain of the linearised loop, the spread over seeds, and the time of training."""
    rows = []
    strongest = results.config.eps[-2] if len(results.config.eps) > 1 else results.config.eps[-1]
    for method in results.config.methods:
        facts = results.facts(method)
        seconds = [sum(one.values()) for one in results.seconds(method)]
        spread = results.returns(method, COMMON, strongest).mean(axis=1).std(ddof=1)
        rows.append(
            (
                method.label,
                format_interval(bootstrap_interval(facts["certified"]), 1),
                format_interval(bootstrap_interval(facts["empirical"]), 1),
                loop_gain_text(results, method),
                format_number(float(spread)),
                format_number(float(np.mean(seconds))),
            )
        )
    header = (
        "policy", "certified constant", "found by ascent", "loop gain, median", f"s.d. over seeds, eps {strongest:g}",
        "training [s]",
    )  # fmt: skip
    return Table(header, tuple(rows))


def upright_table(results: Results) -> Table:
    """Gain of the linear loop, and mean return near the upright under the trajectory attack."""
    config = results.config
    sizes = (0.0, *controllers.UPRIGHT_EPS)
    rows = []
    gains = results.run.cell("gains")
    for name, title in controllers.CONTROLLERS.items():
        returns = [np.mean(results.run.cell(upright_key(name, eps))["returns"]) for eps in sizes]
        rows.append((title, format_number(gains[name], 2), *(format_number(float(r), 2) for r in returns)))
    for method in controllers.compared(config):
        intervals = [
            bootstrap_interval(results.run.cell(upright_key(method.key, eps))["returns"]) for eps in sizes
        ]
        rows.append(
            (method.label, loop_gain_text(results, method), *(format_interval(i, 1) for i in intervals))
        )
    return Table(("controller", "loop gain", *(f"eps {eps:g}" for eps in sizes)), tuple(rows))


def swing_up_sentence(results: Results) -> str:
    """Returns of the LQG controller behind a swing-up on the whole task."""
    found = []
    for eps in (0.0, *results.config.eps):
        mean = float(np.mean(results.run.cell(swing_up_key(eps))["returns"]))
        found.append(f"{format_number(mean)} at eps {eps:g}")
    return (
        "An energy law that hands over to an LQG controller collects, under the strongest trajectory attack: "
        f"{', '.join(found)}."
    )


def loop_gain_text(results: Results, method: Method) -> str:
    """Median gain of the linearised loop over the seeds whose loop is stable, and the number of the others."""
    every = results.facts(method)["loop_gain"]
    gains = [gain for gain in every if gain is not None]
    if not gains:
        return "unstable" if every else "-"
    unstable = len(every) - len(gains)
    return format_number(float(np.median(gains)), 2) + (f" ({unstable} unstable)" if unstable else "")


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figures of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The main tables as text, and the path of the main figure.
    """
    results = Results(run)
    config = results.config
    limit = results.limit()
    note = (
        f"{config.plant}: {len(config.training_seeds)} training seeds x {config.episodes} episodes, the same start "
        "states for all policies, deterministic policies, 95 % bootstrap intervals over training seeds. eps is the l2 "
        "size of the perturbation of the raw observation at every step"
        + (
            "."
            if config.attack_scale is None
            else f", in units of {', '.join(f'{s:g}' for s in config.attack_scale)} per component."
        )
        + " The worst of all is the least return of each episode over all attacks on the method but the learned one; "
        f"the common attacks, which all methods met, are {', '.join(TITLES[a] for a in config.attacks)}."
    )
    sections = [f"# {run.name}\n\n{note}"]
    recipe = recipe_table(results)
    sections.append(
        "## The recipe against the controls, worst of all attacks\n\nIn brackets where the recipe's interval lies.\n\n"
        f"{recipe.markdown()}\n\n{nominal_sentence(results)}"
    )
    if config.twins:
        sections.append(
            "The same training without a bound, or from another start:\n\n" + twin_table(results).markdown()
        )
    for statistic, title in _STATISTICS.items():
        table = return_table(results, config.methods, COMMON, statistic)
        sections.append(f"## {title}, worst of the attacks that all methods met\n\n{table.markdown()}")
    sections += [
        f"## Mean return at eps {eps:g}\n\n{attack_table(results, eps).markdown()}" for eps in config.eps
    ]
    sections.append(
        "## Checks of the attacks\n\nNumber of methods that an attack hurts more / less than uniform noise of the same "
        f"size, judged by the 95 % interval of the paired difference:\n\n{floor_table(results).markdown()}"
    )
    if config.learned:
        sections.append(f"## Learned adversary, mean return\n\n{learned_table(results).markdown()}")
    if conditions(results):
        sections.append(f"## Delays and faults, mean return\n\n{condition_table(results).markdown()}")
    if config.bounded:
        table = gamma_table(results)
        sections.append(f"## At which bound does an LBDN beat a control?\n\n{table.markdown()}")
    loops = (
        ""
        if limit is None
        else f" Least gain of any controller of the linearised plant from sensor error to cost: {limit:.3f}."
    )
    sections.append(f"## Constants, loops, spread\n\n{fact_table(results).markdown()}\n\n{_FACTS}{loops}")
    if config.equilibrium is not None:
        sections.append(
            f"## Beside linear controllers\n\nEpisodes of {controllers.STEPS} steps that start within "
            f"{controllers.START:g} rad and rad/s of the upright, under the strongest trajectory attack:\n\n"
            f"{upright_table(results).markdown()}\n\n{swing_up_sentence(results)}"
        )
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        curves_figure(results)
        if config.bounded:
            gamma_figure(results)
        figure = frontier_figure(results)
    return f"{recipe.text()}\n{nominal_sentence(results)}", figure


_FACTS = (
    "Constants are of the action before clipping per unit of the observation in the norm of the attack. The loop gain "
    "is the H-infinity norm from the sensor error to the cost of the plant and the policy, both linearised at the "
    "equilibrium; its median is over the seeds whose loop is stable."
)


def nominal_sentence(results: Results) -> str:
    """Say for which controls the recipe's nominal return is at most 3 % lower."""
    config = results.config
    recipe = config.methods[config.recipe]
    ours = float(results.returns(recipe).mean())
    losses = {}
    for k in config.controls:
        theirs = float(results.returns(config.methods[k]).mean())
        losses[config.methods[k].label] = (theirs - ours) / abs(theirs)
    worst = max(losses, key=lambda label: losses[label])
    within = sum(loss <= _EQUAL for loss in losses.values())
    return (
        f"Nominal return of the recipe ({recipe.label}): {ours:.1f}; it is at most 3 % below that of {within} of "
        f"{len(losses)} controls. Largest loss: {100 * losses[worst]:.1f} % against {worst}."
    )
