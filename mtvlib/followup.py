"""The patients of the survival analysis: how long they were followed up, who lived, and whom the burdens tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtvlib.intervals import Estimate, wilson
from mtvlib.survival import kaplan_meier

SOURCES = ("man", "cnn")
MIN_AT_RISK = 10  # patients still at risk that an estimate at a time needs


def log2_burden(ttb_ml: Any) -> np.ndarray:
    """log2(TTB + 1), TTB in ml (n,): one more unit is a doubling of a burden that is large against 1 ml."""
    return np.log2(np.asarray(ttb_ml, float) + 1)


@dataclass(frozen=True)
class Group:
    """The n patients of a partition that count in the survival analysis: rows of patients.csv as arrays (n,)."""

    rows: pd.DataFrame

    @property
    def times(self) -> np.ndarray:
        return self.rows["followup_months"].to_numpy(float)

    @property
    def died(self) -> np.ndarray:
        return self.rows["death"].to_numpy(float) == 1

    def burden(self, source: str) -> np.ndarray:
        return log2_burden(self.rows[f"ttb_{source}_ml"])

    def same_as(self, other: Group) -> bool:
        return self.rows["patient"].tolist() == other.rows["patient"].tolist()


def support(group: Group, month: float) -> dict[str, Any]:
    """Patients at risk beyond a month and deaths until then; `reason` if these are too few for an estimate."""
    left, deaths = int((group.times > month).sum()), int((group.died & (group.times <= month)).sum())
    block: dict[str, Any] = {"n_at_risk": left, "events": deaths}
    if left < MIN_AT_RISK:
        return block | {"reason": f"fewer than {MIN_AT_RISK} patients are at risk beyond {month:g} months"}
    return block if deaths else block | {"reason": f"nobody died within {month:g} months"}


def survival_estimate(times: np.ndarray, died: np.ndarray, months: float) -> Estimate:
    """Kaplan-Meier survival at a month with log(-log) limits; none beyond the last patient's follow-up."""
    if not len(times):
        return Estimate(None, None, "no patient")
    curve = kaplan_meier(times, died)
    value, low, high = survival_at(curve, months)
    if value > 0 and times.max() < months:
        return Estimate(None, None, f"nobody was followed up for {months:g} months")
    if low is None or high is None:
        return Estimate(value, None, "no interval: survival is 0 or 1")
    return Estimate(value, (low, high))


def survival_at(curve: pd.DataFrame, months: float) -> tuple[float, float | None, float | None]:
    """Survival and its limits at a month, from a table of `survival.kaplan_meier`; limits None where it is 0 or 1."""
    row = curve[curve["months"] <= months].iloc[-1]
    low, high = (None if pd.isna(row[limit]) else float(row[limit]) for limit in ("low", "high"))
    return float(row["survival"]), low, high


# --- follow-up


def followup(group: Group, months: Sequence[float]) -> dict[str, Any]:
    """Median follow-up by reverse Kaplan-Meier (Schemper and Smith 1996), and deaths and patients at risk by month.

    As R's `survfit(Surv(months, death == 0) ~ 1, conf.type = "log-log")`: how long patients would have been followed
    had nobody died.
    """
    block: dict[str, Any] = {"n": len(group.rows), "events": int(group.died.sum())}
    block |= median_followup(group.times, group.died).entries("median_months")
    at = {f"{month:g}": {key: support(group, month)[key] for key in ("n_at_risk", "events")} for month in months}
    return block | {"times": at}


def median_followup(times: np.ndarray, died: np.ndarray) -> Estimate:
    curve = kaplan_meier(times, ~died)
    median, low, high = (_first_at_half(curve, name) for name in ("survival", "low", "high"))
    if median is None:
        return Estimate(None, None, "deaths ended the follow-up before half of the patients were censored")
    if low is None or high is None:
        return Estimate(median, None, "no interval: its upper limit lies beyond the follow-up")
    return Estimate(median, (low, high))


def _first_at_half(curve: pd.DataFrame, name: str) -> float | None:
    """The first month at which the curve or a limit is 1/2 or less; where it is 0 or 1, the curve is its own limit."""
    values = curve[name].astype(float).fillna(curve["survival"])
    found = curve.loc[values <= 0.5 + 1e-9, "months"]  # a half may be 0.5000000000000001
    return float(found.iloc[0]) if len(found) else None


# --- discordant patients


def discordance(group: Group, cutoff_ml: float, months: float) -> dict[str, Any]:
    """Whom the two burdens put into different risk groups, and which was right at `months`.

    Right is high and dead by then, or low and alive. Patients lost before then are `n_unknown`. `cnn_right`: share of
    the known in whom the CNN was right, with Wilson's interval; one half if neither is better.
    """
    high = {source: group.rows[f"ttb_{source}_ml"].to_numpy() > cutoff_ml for source in SOURCES}
    dead, alive = group.died & (group.times <= months), group.times > months
    only = {"high_by_man": high["man"] & ~high["cnn"], "high_by_cnn": high["cnn"] & ~high["man"]}
    block: dict[str, Any] = {"months": months, "n": int(sum(chosen.sum() for chosen in only.values()))}
    block |= {name: _direction(group, chosen, months) for name, chosen in only.items()}
    right = {
        "n_man_right": int((only["high_by_man"] & dead | only["high_by_cnn"] & alive).sum()),
        "n_cnn_right": int((only["high_by_cnn"] & dead | only["high_by_man"] & alive).sum()),
    }
    known = sum(right.values())
    share = Estimate(right["n_cnn_right"] / known, wilson(right["n_cnn_right"], known)) if known else _NOBODY
    return block | right | {"n_unknown": block["n"] - known} | share.entries("cnn_right")


_NOBODY = Estimate(None, None, "no discordant patient whose fate is known")


def _direction(group: Group, chosen: np.ndarray, months: float) -> dict[str, Any]:
    times, died = group.times[chosen], group.died[chosen]
    counts = {
        "n": len(times),
        "events": int(died.sum()),
        "n_dead": int((died & (times <= months)).sum()),
        "n_alive": int((times > months).sum()),
    }
    return counts | survival_estimate(times, died, months).entries("survival")
