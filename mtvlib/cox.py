"""Cox regression of several covariates, and whether its assumptions hold: linearity and proportional hazards.

The fits are lifelines' (ties by Efron's method). What is added: refusals that say why, the restricted cubic spline of
one covariate, Schoenfeld residuals with the score test of R's `cox.zph` (survival >= 3.0), and Breslow's baseline.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import lifelines
import numpy as np
import pandas as pd
from lifelines.exceptions import ConvergenceError
from scipy import stats

from mtvlib.intervals import LEVEL
from mtvlib.survival import FIT, CannotEstimateError, HazardRatio, Values, follow_up, numbers

MOST_LOG_HAZARD = 15.0  # log hazard ratio between the extremes of a covariate, beyond which it must be significant
KNOTS = {3: (0.1, 0.5, 0.9), 4: (0.05, 0.35, 0.65, 0.95)}  # Harrell 2015, Regression Modeling Strategies, table 2.3
EVENTS_PER_COVARIATE = 10  # Peduzzi et al. 1995


class TooFewEventsError(CannotEstimateError):
    """Fewer than `EVENTS_PER_COVARIATE` deaths for every coefficient."""


@dataclass(frozen=True)
class Cox:
    """A fitted model: log hazard ratios (p,) of the named covariates and their covariance (p, p)."""

    names: tuple[str, ...]
    beta: np.ndarray
    covariance: np.ndarray
    log_likelihood: float
    n: int
    events: int

    def hazard_ratio(self, name: str) -> HazardRatio:
        """Of one more unit of a covariate, the others held: Wald's interval and p, as in R's `summary(coxph(...))`."""
        k = self.names.index(name)
        beta, se = float(self.beta[k]), float(np.sqrt(self.covariance[k, k]))
        half = float(stats.norm.ppf((1 + LEVEL) / 2)) * se
        interval = float(np.exp(beta - half)), float(np.exp(beta + half))
        return HazardRatio(
            float(np.exp(beta)), interval, float(stats.chi2.sf((beta / se) ** 2, 1)), self.n, self.events
        )


def fit(covariates: pd.DataFrame, months: Values, death: Values, strata: Values | None = None) -> Cox:
    """Cox regression on the columns of `covariates` (n, p), ties by Efron's method; each of `strata` has its baseline.

    Raises `InputError` for malformed data and `CannotEstimateError` where no finite maximum of the likelihood exists.
    """
    times, died = follow_up(months, death)
    columns = {str(name): numbers(covariates[name], str(name)) for name in covariates}
    if not died.any():
        raise CannotEstimateError("no hazard ratio: nobody died")
    for name, values in columns.items():
        if np.ptp(values) == 0:
            raise CannotEstimateError(f"no hazard ratio: {name} is the same in all patients")
    if len(columns) == 1 and strata is None:
        _refuse_monotone(times, died, next(iter(columns.values())))
    frame = pd.DataFrame({"months": times, "death": died, **columns})
    if strata is not None:
        frame["stratum"] = pd.factorize(np.asarray(strata))[0]
    fitter = lifelines.CoxPHFitter(alpha=1 - LEVEL, strata=None if strata is None else ["stratum"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is refused here or below
            fitted = fitter.fit(frame, "months", "death", fit_options=FIT)
    except ConvergenceError:
        raise CannotEstimateError("no hazard ratio: the covariates determine each other or the deaths") from None
    beta, covariance = fitted.params_.to_numpy(float), fitted.variance_matrix_.to_numpy(float)
    _refuse_divergence(columns, beta, covariance)
    return Cox(tuple(columns), beta, covariance, float(fitted.log_likelihood_), len(times), int(died.sum()))


def _refuse_monotone(times: np.ndarray, died: np.ndarray, values: np.ndarray) -> None:
    """One covariate has no finite maximum if at each death nobody at risk has a larger (or a smaller) value."""
    order = np.argsort(times, kind="stable")
    later = values[order][::-1]  # from the last of the patients on, as they come under observation
    first_at_risk = np.searchsorted(times[order], times[died])
    least, most = (extreme.accumulate(later)[::-1][first_at_risk] for extreme in (np.minimum, np.maximum))
    if (values[died] == least).all() or (values[died] == most).all():
        raise CannotEstimateError(
            "no hazard ratio: at every death the patient had the most extreme value of those at risk, so the "
            "likelihood rises without end"
        )


def _refuse_divergence(columns: dict[str, np.ndarray], beta: np.ndarray, covariance: np.ndarray) -> None:
    """Where the likelihood rises without end, the fit stops at a huge coefficient with a larger standard error."""
    for name, coefficient, variance in zip(columns, beta, np.diag(covariance), strict=True):
        huge = abs(coefficient) * np.ptp(columns[name]) > MOST_LOG_HAZARD
        if not variance > 0 or (huge and coefficient**2 < 4 * variance):
            raise CannotEstimateError(f"no hazard ratio: the likelihood rises without end along {name} (separation)")


# --- linearity


@dataclass(frozen=True)
class Linearity:
    """Likelihood-ratio test of a restricted cubic spline against a straight line in the log hazard."""

    chi2: float
    df: int
    p: float
    knots: tuple[float, ...]
    spline: Cox
    linear: Cox


def linearity(values: Values, months: Values, death: Values) -> Linearity:
    """Is the log hazard a straight line in `values` (n,)? Four knots, or three with fewer than 30 deaths.

    Raises `TooFewEventsError` below `EVENTS_PER_COVARIATE` deaths for each of the spline's coefficients, so below 20.
    """
    x = numbers(values, "values")
    events = int(follow_up(months, death)[1].sum())
    n_knots = 4 if events >= 3 * EVENTS_PER_COVARIATE else 3
    refuse_few_events("spline", events, n_knots - 1)
    knots = harrell_knots(x, n_knots)
    straight = fit(pd.DataFrame({"value": x}), months, death)
    curved = fit(pd.DataFrame(spline_basis(x, knots)).rename(columns="spline {}".format), months, death)
    chi2 = max(2 * (curved.log_likelihood - straight.log_likelihood), 0.0)
    return Linearity(chi2, n_knots - 2, float(stats.chi2.sf(chi2, n_knots - 2)), knots, curved, straight)


def refuse_few_events(what: str, events: int, coefficients: int) -> None:
    """Raise `TooFewEventsError` if there are fewer than `EVENTS_PER_COVARIATE` deaths for each coefficient."""
    needed = EVENTS_PER_COVARIATE * coefficients
    if events < needed:
        raise TooFewEventsError(
            f"no {what}: {events} deaths, {needed} are needed ({EVENTS_PER_COVARIATE} for each of {coefficients} "
            "coefficients)"
        )


def harrell_knots(values: np.ndarray, n_knots: int) -> tuple[float, ...]:
    """Knots at the quantiles of `KNOTS`; raises `CannotEstimateError` if two of them fall together."""
    knots = np.quantile(values, KNOTS[n_knots])
    if (np.diff(knots) <= 0).any():
        raise CannotEstimateError("no spline: too many patients share a value, so two knots fall together")
    return tuple(float(knot) for knot in knots)


def spline_basis(values: np.ndarray, knots: tuple[float, ...]) -> np.ndarray:
    """Restricted cubic spline, linear beyond the outer knots: (n, k - 1), the first column the values themselves.

    Harrell 2015, Regression Modeling Strategies, equation 2.25, divided by the squared distance of the outer knots.
    """
    x, t = np.asarray(values, float)[:, None], np.asarray(knots)
    last, before = t[-1], t[-2]
    cubes = np.maximum(x - t[:-2], 0) ** 3
    cubes -= np.maximum(x - before, 0) ** 3 * (last - t[:-2]) / (last - before)
    cubes += np.maximum(x - last, 0) ** 3 * (before - t[:-2]) / (last - before)
    return np.hstack([x, cubes / (last - t[0]) ** 2])


def spline_curve(test: Linearity, values: np.ndarray, reference: float) -> pd.DataFrame:
    """Hazard ratio against a patient at `reference`: columns `value`, `hr`, `low`, `high` (Wald), `hr_linear`."""
    difference = spline_basis(values, test.knots) - spline_basis(np.array([reference]), test.knots)
    log_hr = difference @ test.spline.beta
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(((difference @ test.spline.covariance) * difference).sum(1))
    straight = (values - reference) * test.linear.beta[0]
    limits = {"low": np.exp(log_hr - half), "high": np.exp(log_hr + half), "hr_linear": np.exp(straight)}
    return pd.DataFrame({"value": values, "hr": np.exp(log_hr), **limits})


# --- proportional hazards


@dataclass(frozen=True)
class ProportionalHazards:
    """Score tests of a trend in time: of each covariate (1 degree of freedom) and of all (`global_`), and residuals."""

    chi2: dict[str, float]
    p: dict[str, float]
    global_chi2: float
    global_p: float
    residuals: pd.DataFrame  # a row a death: `months`, `transformed`, and each covariate's beta(t)


def proportional_hazards(model: Cox, covariates: pd.DataFrame, months: Values, death: Values) -> ProportionalHazards:
    """Do the log hazard ratios change with time? Score test of covariate x g(t), with g(t) = 1 - Kaplan-Meier at t-.

    Grambsch and Therneau 1994. It is `cox.zph` of R's survival from version 3.0 (`transform="km"`), which solves the
    score test exactly; before 3.0 the variance was taken as constant over the deaths, which lifelines'
    `proportional_hazard_test` does as well. Residuals are scaled and have the coefficient added, so that their trend
    estimates beta(t).
    """
    times, died = follow_up(months, death)
    x = covariates[list(model.names)].to_numpy(float)
    sets = [_RiskSet.of(month, times, died, x, model.beta) for month in np.unique(times[died])]
    g = _km_before(times, died, np.array([one.month for one in sets]))
    g -= np.average(g, weights=[len(one.residuals) for one in sets])
    variances = np.array([one.variance for one in sets])
    info, cross, trend = (np.tensordot(g**power, variances, 1) for power in (0, 1, 2))
    score = sum(at * one.residuals.sum(0) for at, one in zip(g, sets, strict=True))
    rest = trend - cross @ np.linalg.pinv(info) @ cross
    if not (np.diag(rest) > 1e-12 * np.diag(info)).all():
        raise CannotEstimateError("no test of proportional hazards: all deaths at one time")
    chi2 = dict(zip(model.names, (score**2 / np.diag(rest)).tolist(), strict=True))
    total = float(score @ np.linalg.pinv(rest) @ score)
    residuals = np.vstack([one.residuals for one in sets]) @ np.linalg.pinv(info) * died.sum() + model.beta
    deaths = np.repeat([one.month for one in sets], [len(one.residuals) for one in sets])
    table = pd.DataFrame({"months": deaths, "transformed": _km_before(times, died, deaths)})
    p = {name: float(stats.chi2.sf(value, 1)) for name, value in chi2.items()}
    table[list(model.names)] = residuals
    return ProportionalHazards(chi2, p, total, float(stats.chi2.sf(total, len(chi2))), table)


@dataclass(frozen=True)
class _RiskSet:
    """The d deaths of one time: Schoenfeld residuals (d, p) and the sum of the covariates' variances (p, p)."""

    month: float
    residuals: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, month: float, times: np.ndarray, died: np.ndarray, x: np.ndarray, beta: np.ndarray) -> _RiskSet:
        at_risk, tied = times >= month, died & (times == month)
        x, dead = x[at_risk], tied[at_risk]
        hazard = np.exp((x - x.mean(0)) @ beta)
        means, variance = [], np.zeros((x.shape[1],) * 2)
        for share in np.arange(dead.sum()) / dead.sum():  # Efron: the tied leave the risk set one after the other
            weight = hazard * (1 - share * dead)
            weight /= weight.sum()
            means.append(weight @ x)
            variance += (weight * (x - means[-1]).T) @ (x - means[-1])
        return cls(month, x[dead] - np.mean(means, axis=0), variance)


def _km_before(times: np.ndarray, died: np.ndarray, at: np.ndarray) -> np.ndarray:
    """1 - Kaplan-Meier estimate just before each time: the time scale on which deaths are spread evenly."""
    months, deaths = np.unique(times[died], return_counts=True)
    survival = np.cumprod(1 - deaths / (times >= months[:, None]).sum(1))
    return 1 - np.r_[1, survival][np.searchsorted(months, at)]


def trend(residuals: pd.DataFrame, name: str) -> pd.DataFrame:
    """beta(t) of a covariate: a restricted cubic spline through its scaled residuals, by least squares over g(t).

    Columns `transformed`, `beta`, `low`, `high` (95 %, of the mean). Raises `CannotEstimateError` below 20 deaths.
    """
    refuse_few_events("trend of the residuals", len(residuals), 2)
    x, y = residuals["transformed"].to_numpy(), residuals[name].to_numpy()
    knots = harrell_knots(x, 4 if len(residuals) >= 3 * EVENTS_PER_COVARIATE else 3)
    at = np.linspace(x.min(), x.max(), 60)
    basis, drawn = (np.column_stack([np.ones(len(one)), spline_basis(one, knots)]) for one in (x, at))
    inverse = np.linalg.pinv(basis.T @ basis)
    coefficients = inverse @ basis.T @ y
    variance = ((y - basis @ coefficients) ** 2).sum() / (len(y) - basis.shape[1])
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance * ((drawn @ inverse) * drawn).sum(1))
    beta = drawn @ coefficients
    return pd.DataFrame({"transformed": at, "beta": beta, "low": beta - half, "high": beta + half})


# --- prediction


@dataclass(frozen=True)
class Baseline:
    """A model of one covariate that predicts: its log hazard ratio and Breslow's cumulative hazard at `centre`."""

    beta: float
    centre: float
    months: np.ndarray  # times of death, rising
    hazard: np.ndarray  # cumulative, just after each

    def linear_predictor(self, values: np.ndarray) -> np.ndarray:
        return self.beta * (np.asarray(values, float) - self.centre)

    def cumulative_hazard(self, values: np.ndarray, months: float | np.ndarray) -> np.ndarray:
        """Expected deaths (n,) of patients with these values until `months`: one number or one a patient."""
        hazard = np.r_[0, self.hazard][np.searchsorted(self.months, months, side="right")]
        return hazard * np.exp(self.linear_predictor(values))

    def survival(self, values: np.ndarray, months: float) -> np.ndarray:
        return np.exp(-self.cumulative_hazard(values, months))


def baseline(values: Values, months: Values, death: Values) -> Baseline:
    """Fit a Cox model of one covariate for prediction (Breslow 1972). Raises as `fit` does."""
    times, died = follow_up(months, death)
    x = numbers(values, "values")
    beta = float(fit(pd.DataFrame({"value": x}), months, death).beta[0])
    risk = np.exp(beta * (x - x.mean()))
    at, deaths = np.unique(times[died], return_counts=True)
    steps = deaths / np.array([risk[times >= month].sum() for month in at])
    return Baseline(beta, float(x.mean()), at, np.cumsum(steps))
