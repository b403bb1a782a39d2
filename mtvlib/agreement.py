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
    `limits_of_agreement_ml` the mean difference -+ 1.96 standard deviations (Bland and Altman 1986). Large tumours
    scatter more, so `ratio` and `limits_of_agreement_ratio` give the same for cnn / man: geometric mean and limits of
    the logarithms (Bland and Altman 1999), of the `n_ratio` patients with a burden in both. `icc` is ICC(2,1), absolute
    agreement of single measurements (Shrout and Fleiss 1979), `ccc` Lin's concordance correlation (1989), and
    `deming_slope`, `deming_intercept_ml` the line when both delineations err alike (Deming regression, error ratio 1).
    """
    burdens = np.column_stack([man_ml, cnn_ml]).astype(float)
    left_out = outliers(burdens[:, 0], burdens[:, 1], percentile)
    block = _block(burdens, percentile, bootstrap)
    block["n_outliers"] = int(left_out.sum())
    return block | {"all_patients": _block(burdens, 100.0, bootstrap)}


def _block(burdens: np.ndarray, percentile: float, bootstrap: Bootstrap) -> dict[str, Any]:
    few = "fewer than three patients, or all have the same burden"
    reasons = dict.fromkeys(("r2", "slope", "intercept_ml", "limits_low", "limits_high"), few)
    reasons |= dict.fromkeys(("icc", "ccc", "deming_slope", "deming_intercept_ml"), few)
    reasons |= dict.fromkeys(("ratio", "ratio_low", "ratio_high"), "fewer than three patients with a burden in both")
    reasons["volume_bias"] = "no reference volume"
    estimates = bootstrap.of_sample(burdens, lambda sample: _statistics(sample, percentile), reasons)
    limits = {key: estimates.pop(key) for key in ("limits_low", "limits_high", "ratio_low", "ratio_high")}
    block: dict[str, Any] = {"n_ratio": int((_kept(burdens, percentile) & (burdens > 0).all(-1)).sum())}
    for key, estimate in estimates.items():
        block |= estimate.entries(key)
    block |= pair_entries("limits_of_agreement_ml", limits["limits_low"], limits["limits_high"])
    return block | pair_entries("limits_of_agreement_ratio", limits["ratio_low"], limits["ratio_high"])


def _kept(burdens: np.ndarray, percentile: float) -> np.ndarray:
    """Patients (..., n) bool of samples (..., n, 2) that are no outliers."""
    size = np.abs(burdens[..., 1] - burdens[..., 0])
    return size <= np.percentile(size, percentile, axis=-1, keepdims=True)


def _statistics(burdens: np.ndarray, percentile: float) -> dict[str, np.ndarray]:
    """All estimates of one or many samples (..., n, 2) of patients."""
    kept = _kept(burdens, percentile)
    man, cnn = burdens[..., 0], burdens[..., 1]
    moments = _moments(man, cnn, kept)
    size, bias = np.abs(cnn - man), moments.mean_y - moments.mean_x
    sd = np.sqrt(moments.unbiased * np.maximum(moments.xx + moments.yy - 2 * moments.xy, 0))
    slope = ratio(moments.xy, moments.xx)
    return {
        "r2": ratio(moments.xy**2, moments.xx * moments.yy),
        "mean_absolute_difference_ml": _mean(size, kept),
        "mean_difference_ml": bias,
        "volume_bias": ratio(moments.mean_y, moments.mean_x) - 1,
        "slope": slope,
        "intercept_ml": moments.mean_y - slope * moments.mean_x,
        "limits_low": bias - 1.96 * sd,
        "limits_high": bias + 1.96 * sd,
        "icc": _icc(moments),
        "ccc": _ccc(moments),
        **_deming(moments),
        **_ratios(man, cnn, kept),
    }


@dataclass(frozen=True)
class _Moments:
    """Means, and mean products of deviations (NaN below three patients), of samples (...)."""

    n: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    @property
    def unbiased(self) -> np.ndarray:
        """Factor from the mean of squares to the variance."""
        return self.n / np.maximum(self.n - 1, 1)


def _mean(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return ratio((values * kept).sum(-1), kept.sum(-1))


def _moments(x: np.ndarray, y: np.ndarray, kept: np.ndarray) -> _Moments:
    mean_x, mean_y = _mean(x, kept), _mean(y, kept)
    d_x, d_y = x - mean_x[..., None], y - mean_y[..., None]
    enough = np.where(kept.sum(-1) >= 3, 1.0, np.nan)
    # Rounding alone leaves a spread of about 1e-32 ml2 in a sample of equal burdens.
    xx, yy = (np.where(spread > 1e-18, spread, 0) * enough for spread in (_mean(d_x**2, kept), _mean(d_y**2, kept)))
    return _Moments(kept.sum(-1), mean_x, mean_y, xx, yy, _mean(d_x * d_y, kept) * enough)


def icc_and_ccc(x: np.ndarray, y: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ICC(2,1) and Lin's concordance correlation of samples (..., n); those not `kept` (..., n) must be finite."""
    moments = _moments(x, y, kept)
    return _icc(moments), _ccc(moments)


def _ccc(moments: _Moments) -> np.ndarray:
    """2 s_xy / (s_x^2 + s_y^2 + (mean_x - mean_y)^2) with n in the denominators (Lin 1989)."""
    return ratio(2 * moments.xy, moments.xx + moments.yy + (moments.mean_x - moments.mean_y) ** 2)


def _icc(moments: _Moments) -> np.ndarray:
    """ICC(2,1) = (MSR - MSE) / (MSR + MSE + 2 (MSC - MSE) / n) of two raters (Shrout and Fleiss 1979, p. 423)."""
    rows = moments.unbiased * (moments.xx + moments.yy + 2 * moments.xy) / 2
    error = moments.unbiased * (moments.xx + moments.yy - 2 * moments.xy) / 2
    columns = moments.n * (moments.mean_x - moments.mean_y) ** 2 / 2
    return ratio(rows - error, rows + error + 2 * (columns - error) / np.maximum(moments.n, 1))


def _deming(moments: _Moments) -> dict[str, np.ndarray]:
    difference = moments.yy - moments.xx
    slope = ratio(difference + np.sqrt(difference**2 + 4 * moments.xy**2), 2 * moments.xy)
    return {"deming_slope": slope, "deming_intercept_ml": moments.mean_y - slope * moments.mean_x}


def _ratios(man: np.ndarray, cnn: np.ndarray, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Geometric mean of cnn / man and the limits of agreement of the ratio."""
    both = kept & (man > 0) & (cnn > 0)
    logs = np.where(both, np.log(np.where(both, cnn, 1)) - np.log(np.where(both, man, 1)), 0)
    moments = _moments(logs, logs, both)
    mean = moments.mean_x * np.where(moments.n >= 3, 1.0, np.nan)
    sd = np.sqrt(moments.unbiased * moments.xx)
    return {"ratio": np.exp(mean), "ratio_low": np.exp(mean - 1.96 * sd), "ratio_high": np.exp(mean + 1.96 * sd)}
