"""How well the burden tells who dies early: Harrell's and Uno's C, time-dependent AUC, Brier score.

Patients who left before the time in question are made up for by weighting those who stayed: inverse probability of
censoring weights (IPCW) from the Kaplan-Meier estimate G of being still under observation. A death at t counts with
1 / G(t-), the probability of being observed until just before it, so that a censoring at the same time does not count
against it; where no death and censoring share a time this is scikit-survival's definition.

Every statistic takes weights (b, n), how often each of b resamples holds each patient, and gives (b,): a bootstrap is a
few products of matrices. Pairs are compared in blocks of rows, so memory stays flat whatever the number of patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtvlib.intervals import ratio

PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Censoring:
    """G: probability of being uncensored after each of m months, (b, m + 1) with 1 at the beginning."""

    months: np.ndarray
    uncensored: np.ndarray

    def before(self, times: np.ndarray | float) -> np.ndarray:
        """G(t-), (b, n)."""
        return self.uncensored[:, np.searchsorted(self.months, np.atleast_1d(times), side="left")]

    def at(self, times: np.ndarray | float) -> np.ndarray:
        """G(t), (b, n)."""
        return self.uncensored[:, np.searchsorted(self.months, np.atleast_1d(times), side="right")]


def censoring(times: np.ndarray, died: np.ndarray, weights: np.ndarray) -> Censoring:
    """Kaplan-Meier estimate of the censoring; of a death and a censoring at one time, the death came first."""
    order = np.argsort(times, kind="stable")
    months, starts = np.unique(times[order], return_index=True)
    everybody = np.add.reduceat(weights[:, order], starts, axis=1)
    deaths = np.add.reduceat((weights * died)[:, order], starts, axis=1)
    at_risk = everybody[:, ::-1].cumsum(1)[:, ::-1] - deaths
    hazard = np.divide(everybody - deaths, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
    return Censoring(months, np.hstack([np.ones((len(weights), 1)), np.cumprod(1 - hazard, axis=1)]))


def _inverse(probability: np.ndarray) -> np.ndarray:
    """1 / p; 0 where p is 0, which happens only to patients whom the resample does not hold."""
    return np.divide(1.0, probability, out=np.zeros_like(probability), where=probability > 0)


def _blocks(rows: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    step = max(1, PAIRS_AT_ONCE // max(columns, 1))
    for first in range(0, len(rows), step):
        yield rows[first : first + step]


def _wins(risk: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """1 where the patient of the row is at higher risk, 0.5 where they tie, (rows, columns)."""
    return (np.sign(risk[rows, None] - risk[columns]) + 1) / 2


def concordances(
    times: np.ndarray, died: np.ndarray, risks: Mapping[str, np.ndarray], weights: np.ndarray, tau: float
) -> dict[str, dict[str, np.ndarray]]:
    """Harrell's C and Uno's C truncated at `tau` months, of each named risk (n,): `{"harrell_c": {name: (b,)}, ...}`.

    Uno et al. 2011: a pair counts with 1 / G(t-)^2 of its earlier time t, if that is a death before `tau`. Unlike
    Harrell's, its expectation does not depend on how long the patients were followed up. NaN where no pair compares.
    """
    everybody, dead = np.arange(len(times)), np.flatnonzero(died)
    uno = _inverse(censoring(times, died, weights).before(times)) ** 2 * (times < tau)
    factors = {"harrell_c": weights, "uno_c": weights * uno}
    pairs = {kind: np.zeros(len(weights)) for kind in factors}
    won = {kind: {name: np.zeros(len(weights)) for name in risks} for kind in factors}
    for rows in _blocks(dead, len(times)):
        later = times[rows, None] < times
        later |= (times[rows, None] == times) & ~died
        compared = weights @ later.T.astype(float)
        wins = {name: weights @ (_wins(risk, rows, everybody) * later).T for name, risk in risks.items()}
        for kind, factor in factors.items():
            pairs[kind] += (factor[:, rows] * compared).sum(1)
            for name in risks:
                won[kind][name] += (factor[:, rows] * wins[name]).sum(1)
    return {kind: {name: ratio(won[kind][name], pairs[kind]) for name in risks} for kind in factors}


def auc(
    times: np.ndarray, died: np.ndarray, risks: Mapping[str, np.ndarray], weights: np.ndarray, months: float
) -> dict[str, np.ndarray]:
    """Cumulative/dynamic AUC at `months` of each named risk: `{name: (b,)}`; NaN without cases or controls.

    The probability that who has died by then was at higher risk than who is alive (Heagerty et al. 2000), cases
    weighted by 1 / G(t-) (Uno et al. 2007; Hung and Chiang 2010).
    """
    cases, controls = np.flatnonzero(died & (times <= months)), np.flatnonzero(times > months)
    case = weights[:, cases] * _inverse(censoring(times, died, weights).before(times[cases]))
    control = weights[:, controls]
    total = case.sum(1) * control.sum(1)
    won = {name: np.zeros(len(weights)) for name in risks}
    for block in _blocks(np.arange(len(cases)), len(controls)):
        for name, risk in risks.items():
            won[name] += (case[:, block] * (control @ _wins(risk, cases[block], controls).T)).sum(1)
    return {name: ratio(sums, total) for name, sums in won.items()}


def brier(
    times: np.ndarray,
    died: np.ndarray,
    survival: np.ndarray,
    weights: np.ndarray,
    months: float,
    observation: Censoring | None = None,
) -> np.ndarray:
    """Brier score (b,) at `months` of predicted survival (n,): mean squared error of the forecast, IPCW.

    Graf et al. 1999. `observation`: the censoring of other patients, such as those the model was fitted to; by default
    that of these. NaN where G is 0 at `months`, so that nobody's fate then is known.
    """
    g = observation or censoring(times, died, weights)
    dead = (died & (times <= months)) * _inverse(g.before(times)) * survival**2
    alive = (times > months) * _inverse(g.at(months)) * (1 - survival) ** 2
    known = np.where(g.at(months)[:, 0] > 0, 1.0, np.nan)
    return ratio((weights * (dead + alive)).sum(1), weights.sum(1)) * known


def latest_supported(times: np.ndarray, months: Sequence[float], enough: int) -> float:
    """The largest of `months`, or the last time of follow-up that `enough` patients reached if that is earlier."""
    reached = np.sort(times)[-min(enough, len(times))]
    return float(min(max(months), reached))
