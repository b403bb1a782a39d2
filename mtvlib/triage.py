"""Triage: what is gained if the patients of whom the network is least sure are corrected by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mtvlib import metrics
from mtvlib.intervals import Bootstrap, Estimate, all_entries, interval_columns, ratio, wilson

SHARES = tuple(share / 100 for share in range(0, 55, 5))  # of the patients who are corrected by hand
REVIEWED = 0.2  # the share that the summary tells of
ORDERS = ("uncertainty", "random", "worst_first")
TRIAGE = ("mean_dsc", "cohort_dsc", "failed", "failed_of_rest")


def triage(patients: pd.DataFrame, bootstrap: Bootstrap) -> tuple[dict[str, Any], pd.DataFrame]:
    """What is gained if a share of the patients is corrected by hand, and in which order they are looked at.

    A corrected patient has DSC 1 and the reference's volume. Orders: the lowest `expected_dsc` first, at random (what
    is expected of it; of the cohort DSC, the ratio of what is expected of both volumes), and the lowest DSC first,
    which no order can beat in the mean DSC. `gain` of the block: the mean DSC gained by the first order beyond random,
    as a share of what the last gains beyond it, with `REVIEWED` of the patients corrected.
    """
    columns = ["expected_dsc", "dsc_all", "ttb_man_ml", "ttb_cnn_ml", "both_all_ml"]
    sample, n = patients[columns].to_numpy(float), len(patients)
    nobody = "all patients are corrected"
    reasons = {f"{order}_{share}_failed_of_rest": nobody for order in ORDERS for share in SHARES}
    reasons["gain"] = "the order makes no difference"
    estimates = bootstrap.of_sample(sample, triage_of_sample, reasons)
    block = {"share": REVIEWED, "n_corrected": n_corrected(REVIEWED, n)} | estimates.pop("gain").entries("gain")
    rows = []
    for order in ORDERS:
        own = {share: _of_share(estimates, order, share, n) for share in SHARES}
        block[order] = all_entries(own[REVIEWED])
        for share, values in own.items():
            row = {"order": order, "share": share, "n_corrected": n_corrected(share, n)}
            rows.append(row | {k: v for key, value in values.items() for k, v in interval_columns(key, value).items()})
    block["nobody"] = all_entries(_of_share(estimates, ORDERS[0], SHARES[0], n))
    return block, pd.DataFrame(rows)


def _of_share(estimates: Mapping[str, Estimate], order: str, share: float, n: int) -> dict[str, Estimate]:
    """The estimates of one point of a curve; where nobody or everybody left has failed, Wilson's interval."""
    own, left = {key: estimates[f"{order}_{share}_{key}"] for key in TRIAGE}, n - n_corrected(share, n)
    failed = own["failed_of_rest"]
    if failed.value in (0, 1) and failed.ci95 and (ends := wilson(round(failed.value * left), left)):
        own["failed_of_rest"] = replace(failed, ci95=ends)
        own["failed"] = replace(own["failed"], ci95=(ends[0] * left / n, ends[1] * left / n))
    return own


def n_corrected(share: float, n: int) -> int:
    """Number of patients that a share of n is, halves up."""
    return math.floor(share * n + 0.5)


def triage_of_sample(sample: np.ndarray) -> dict[str, np.ndarray]:
    """Estimates of samples (..., n, 5): expected DSC, DSC, and volumes in reference, prediction and both."""
    values = np.concatenate([sample[..., 1:], sample[..., 1:2] == 0], -1)  # the last column: failed
    n, everybody = sample.shape[-2], values.sum(-2)
    estimates: dict[str, np.ndarray] = {}
    for order, key in (("uncertainty", sample[..., 0]), ("worst_first", sample[..., 1])):
        ranked = np.take_along_axis(values, key.argsort(-1, kind="stable")[..., None], -2)
        for share in SHARES:
            k = n_corrected(share, n)
            estimates |= _point(f"{order}_{share}", ranked[..., k:, :].sum(-2), everybody[..., 1], k, n)
    for share in SHARES:
        k = n_corrected(share, n)
        estimates |= _point(f"random_{share}", (n - k) / n * everybody, everybody[..., 1], k, n)
    first, random, best = (estimates[f"{order}_{REVIEWED}_mean_dsc"] for order in ORDERS)
    possible = best - random
    return estimates | {"gain": ratio(first - random, np.where(possible > 1e-12, possible, 0))}


def _point(name: str, left: np.ndarray, man_ml: np.ndarray, k: int, n: int) -> dict[str, np.ndarray]:
    """Estimates from sums (..., 5) of those not corrected and the reference's volume of all; k of n are corrected."""
    dsc, left_ml, cnn_ml, both_ml, failed = np.moveaxis(left, -1, 0)
    corrected_ml = man_ml - left_ml
    values = (
        (dsc + k) / n,
        metrics.cohort_dsc(man_ml, cnn_ml + corrected_ml, both_ml + corrected_ml),
        failed / n,
        ratio(failed, n - k),
    )
    return {f"{name}_{key}": value for key, value in zip(TRIAGE, values, strict=True)}
