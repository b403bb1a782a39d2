"""Does the survival analysis find a truth that is known? Hazard ratio, intervals and tests on simulated studies.

Burdens and outcomes are the phantom's (lesion volumes, Weibull Cox model, censoring, share of eligible patients); no
images are drawn, so the manual burden is the true one, and the CNN's is off by a lognormal factor. The truth is
`phantom.HAZARD_PER_DOUBLING`, the log hazard is a straight line, the hazards are proportional: a test at the 5 % level
should reject 5 % of the studies. For the difference of Uno's C the mean of the studies stands for the truth. From the
repository's root, two minutes:

    python -m benchmarks.coverage
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from benchmarks.measure import write_table
from mtvlib import discrimination, phantom
from mtvlib.classes import NODES, PRIMARY
from mtvlib.evaluation import survival_included
from mtvlib.followup import Group
from mtvlib.intervals import Bootstrap, wilson
from mtvlib.params import Params
from mtvlib.prognosis import continuous

SIZES = (698, 181, 60)
CNN_SD = 0.25  # of log(CNN / manual burden)
TAU_MONTHS = 60.0


def simulate(n: int, rng: np.random.Generator) -> Group:
    """The patients of one study that count in the survival analysis; the cutoff of the groups is their median."""
    rows = []
    for number in range(n):
        subsite = phantom._person(rng, "main")["tumour_site"]
        found = phantom._lesions(rng, "main", subsite)
        ttb_ml = sum(lesion.volume_ml for lesion in found if lesion.label in (PRIMARY, NODES))
        burdens = {"ttb_man_ml": ttb_ml, "ttb_cnn_ml": ttb_ml * np.exp(rng.normal(0, CNN_SD))}
        rows.append({"patient": str(number), **burdens, **phantom._outcome(rng, ttb_ml, "main")})
    table = pd.DataFrame(rows)
    return Group(table[survival_included(table, Params().min_followup_months)])


def study(n: int, rng: np.random.Generator) -> dict[str, float]:
    group = simulate(n, rng)
    block = continuous(group, "man", float(group.rows["ttb_man_ml"].median()))
    low, high = block["hr_ci95"] or (np.nan, np.nan)
    lost = Bootstrap(500, 1).of_weights(len(group.rows), lambda weights: difference(group, weights))["c"]
    return {
        "deaths": int(group.died.sum()),
        "log_hr": np.log(block["hr"]) if block["hr"] else np.nan,
        "covered": low <= phantom.HAZARD_PER_DOUBLING <= high,
        "lost": lost.value,
        "lost_low": lost.ci95[0] if lost.ci95 else np.nan,
        "lost_high": lost.ci95[1] if lost.ci95 else np.nan,
        **{key: block[key].get("p", np.nan) for key in ("linearity", "proportional_hazards")},
    }


def difference(group: Group, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Uno's C of the CNN's burden less that of the manual one."""
    risks = {source: group.burden(source) for source in ("man", "cnn")}
    found = discrimination.concordances(group.times, group.died, risks, weights, TAU_MONTHS)["uno_c"]
    return {"c": found["cnn"] - found["man"]}


def row(n: int, found: pd.DataFrame) -> str:
    ratio, deaths = np.exp(found["log_hr"].mean()), found["deaths"].median()
    between = (found["lost_low"] <= found["lost"].mean()) & (found["lost"].mean() <= found["lost_high"])
    covered = [share(int(holds.sum()), len(found)) for holds in (found["covered"], between)]
    tests = [rejected(found[key].dropna()) for key in ("linearity", "proportional_hazards")]
    return f"| {n} | {deaths:.0f} | {ratio:.3f} | {' | '.join([*covered, *tests])} |"


def rejected(p: pd.Series) -> str:
    return share(int((p < 0.05).sum()), len(p)) if len(p) else "too few deaths"


def share(k: int, n: int) -> str:
    low, high = wilson(k, n) or (0, 1)
    return f"{100 * k / n:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    studies = parser.parse_args().studies
    lines = [
        f"{studies} simulated studies of each size; true hazard ratio {phantom.HAZARD_PER_DOUBLING:g} per doubling of",
        "TTB + 1 ml. In brackets Wilson's intervals: with so few studies, 95 % may show as 92 or 98. Studies with",
        "fewer than 20 deaths have no test of linearity and are left out of its column.",
        "",
        "| patients | deaths analysed | mean HR | HR covered | difference of C covered | linearity rejected "
        "| proportional hazards rejected |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for n in SIZES:
        rng = np.random.default_rng([2023, n])
        lines.append(row(n, pd.DataFrame([study(n, rng) for _ in range(studies)])))
        print(lines[-1], flush=True)
    write_table(
        "coverage",
        "Survival analysis against a known truth",
        [*lines, "", f"Command: `python -m benchmarks.coverage --studies {studies}`."],
    )


if __name__ == "__main__":
    main()
