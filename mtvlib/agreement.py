"""Agreement of the total tumour burden (TTB, ml) between reference and prediction (paper, Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mtvlib.intervals import LEVEL, Bootstrap, pair_entries, ratio


def outliers(man_ml: np.ndarray, cnn_ml: np.ndarray, percentile: float = 99.0) -> np.ndarray:
    """Patients (n,) bool whose absolute difference lies strictly above that percentile (paper: "the top 1 %").

    The percentile is interpolated linearly, so that among 100 patients or fewer the one with the largest difference is
    left out (unless several share it).
    """
    difference = np.abs(np.subtract(cnn_ml, man_ml, dtype=float))
    return difference > np.percentile(difference, percentile)


@dataclass(frozen=True)
class Line:
    """Least-squares line cnn = intercept + slope x man, with what its prediction interval needs."""

    intercept_ml: float
    slope: float
    residual_sd_ml: float  # with n - 2 degrees of freedom
    n: int
    mean_man_ml: float
    spread_man_ml2: float  # sum of squared deviations from the mean

    def predict(self, man_ml: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The line and the lower and upper 95 % limits for a new patient: y -+ t s sqrt(1 + 1/n + (x - mean)^2 / Sxx).

        Assumes the same scatter at every volume, as the paper's figure does; large tumours in fact scatter more.
        """
        man_ml = np.asarray(man_ml, float)
        line = self.intercept_ml + self.slope * man_ml
        t = stats.t.ppf((1 + LEVEL) / 2, self.n - 2)
        half = (
            t * self.residual_sd_ml * np.sqrt(1 + 1 / self.n + (man_ml - self.mean_man_ml) ** 2 / self.spread_man_ml2)
        )
        return line, line - half, line + half


def fit_line(man_ml: np.ndarray, cnn_ml: np.ndarray) -> Line | None:
    """The line through the patients given (n,); None with fewer than three or if all `man_ml` are equal."""
    man, cnn = np.asarray(man_ml, float), np.asarray(cnn_ml, float)
    if len(man) < 3 or np.ptp(man) == 0:
        return None
    deviation = man - man.mean()
    spread = float(deviation @ deviation)
    slope = float(deviation @ cnn) / spread
    intercept = float(cnn.mean()) - slope * float(man.mean())
    residual = cnn - intercept - slope * man
    sd = float(np.sqrt(residual @ residual / (len(man) - 2)))
    return Line(intercept, slope, sd, len(man), float(man.mean()), spread)


def agreement(man_ml: np.ndarray, cnn_ml: np.ndarray, percentile: float, bootstrap: Bootstrap) -> dict[str, Any]:
    """The TTB block of a partition from the patients' burdens (n,) in ml.

    The estimates of the paper leave out the outliers, found anew in every resample; `all_patients` leaves out nobody.
    `r2` is the squared Pearson correlation, `volume_bias` the relative difference of the summed volumes,
    `limits_of_agreement_ml` the mean difference -+ 1.96 standard deviations (Bland and Altman 1986).
    """
    burdens = np.column_stack([man_ml, cnn_ml]).astype(float)
    left_out = outliers(burdens[:, 0], burdens[:, 1], percentile)
    block = _block(burdens, percentile, bootstrap)
    block["n_outliers"] = int(left_out.sum())
    return block | {"all_patients": _block(burdens, 100.0, bootstrap)}


def _block(burdens: np.ndarray, percentile: float, bootstrap: Bootstrap) -> dict[str, Any]:
    few = "fewer than three patients, or all have the same burden"
    reasons = dict.fromkeys(("r2", "slope", "intercept_ml", "limits_low", "limits_high"), few)
    reasons["volume_bias"] = "no reference volume"
    estimates = bootstrap.of_sample(burdens, lambda sample: _statistics(sample, percentile), reasons)
    low, high = estimates.pop("limits_low"), estimates.pop("limits_high")
    block: dict[str, Any] = {}
    for key, estimate in estimates.items():
        block |= estimate.entries(key)
    return block | pair_entries("limits_of_agreement_ml", low, high)


def _statistics(burdens: np.ndarray, percentile: float) -> dict[str, np.ndarray]:
    """All estimates of one or many samples (..., n, 2) of patients."""
    difference = burdens[..., 1] - burdens[..., 0]
    size = np.abs(difference)
    kept = size <= np.percentile(size, percentile, axis=-1, keepdims=True)
    n = kept.sum(-1)

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * kept).sum(-1) / n

    man, cnn = burdens[..., 0], burdens[..., 1]
    d_man, d_cnn = man - mean(man)[..., None], cnn - mean(cnn)[..., None]
    # Rounding alone leaves a spread of about 1e-32 ml2 in a sample of equal burdens.
    s_man, s_cnn = (np.where(s > 1e-18, s, 0) for s in (mean(d_man**2), mean(d_cnn**2)))
    enough = np.where(n >= 3, 1.0, np.nan)
    covariance = mean(d_man * d_cnn) * enough
    slope = ratio(covariance, s_man)
    bias = mean(difference)
    sd = enough * np.sqrt(mean((difference - bias[..., None]) ** 2) * n / np.maximum(n - 1, 1))
    return {
        "r2": ratio(covariance**2, s_man * s_cnn),
        "mean_absolute_difference_ml": mean(size),
        "mean_difference_ml": bias,
        "volume_bias": ratio(mean(cnn), mean(man)) - 1,
        "slope": slope,
        "intercept_ml": mean(cnn) - slope * mean(man),
        "limits_low": bias - 1.96 * sd,
        "limits_high": bias + 1.96 * sd,
    }
