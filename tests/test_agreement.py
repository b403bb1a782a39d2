"""Agreement of volumes against scipy, numpy and a worked example of a prediction interval."""

import numpy as np
import pytest
from scipy import stats

from mtvlib.agreement import agreement, fit_line, outliers
from mtvlib.intervals import Bootstrap

BOOTSTRAP = Bootstrap(200, seed=1)


@pytest.fixture
def burdens():
    random = np.random.default_rng(6)
    man = random.lognormal(2.5, 1, 300)
    return man, man * random.normal(0.98, 0.1, 300) + random.normal(0, 0.5, 300)


@pytest.mark.parametrize(("n", "left_out"), [(698, 7), (181, 2), (100, 1), (30, 1), (3, 1)])
def test_the_top_percent_of_the_differences_is_left_out(n, left_out):
    """698 and 181 patients are the paper's; one percent of them are 7 and 2."""
    assert outliers(np.zeros(n), np.arange(n)).sum() == left_out
    assert outliers(np.zeros(n), -np.arange(n))[-1]


def test_equal_differences_leave_out_nobody():
    assert not outliers([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).any()


def test_estimates_without_outliers_against_scipy(burdens):
    man, cnn = burdens
    block = agreement(man, cnn, 99, BOOTSTRAP)
    difference = np.abs(cnn - man)
    kept = difference <= np.sort(difference)[-4]  # 300 patients: three lie above the 99th percentile
    fit = stats.linregress(man[kept], cnn[kept])
    assert block["n_outliers"] == 3
    assert block["r2"] == pytest.approx(fit.rvalue**2)
    assert (block["slope"], block["intercept_ml"]) == (pytest.approx(fit.slope), pytest.approx(fit.intercept))
    assert block["mean_absolute_difference_ml"] == pytest.approx(difference[kept].mean())
    assert block["volume_bias"] == pytest.approx(cnn[kept].sum() / man[kept].sum() - 1)
    bias, sd = (cnn - man)[kept].mean(), (cnn - man)[kept].std(ddof=1)
    assert block["limits_of_agreement_ml"] == pytest.approx([bias - 1.96 * sd, bias + 1.96 * sd])


def test_estimates_with_outliers_against_scipy(burdens):
    man, cnn = burdens
    everybody = agreement(man, cnn, 99, BOOTSTRAP)["all_patients"]
    assert everybody["r2"] == pytest.approx(stats.pearsonr(man, cnn).statistic ** 2)
    assert everybody["mean_absolute_difference_ml"] == pytest.approx(np.abs(cnn - man).mean())


def test_every_estimate_lies_in_its_interval(burdens):
    block = agreement(*burdens, 99, BOOTSTRAP)["all_patients"]
    names = [key for key in block if f"{key}_ci95" in block and not key.startswith("limits")]
    assert len(names) == 11
    for name in names:
        low, high = block[f"{name}_ci95"]
        assert low < block[name] < high
    for limit, (low, high) in zip(block["limits_of_agreement_ml"], block["limits_of_agreement_ml_ci95"], strict=True):
        assert low < limit < high


def test_icc_against_the_table_of_an_analysis_of_variance(burdens):
    """ICC(2,1) from the mean squares of patients, raters and error, summed cell by cell."""
    man, cnn = (values[:40] for values in burdens)
    cells = np.column_stack([man, cnn])
    n, k = cells.shape
    grand, rows, columns = cells.mean(), cells.mean(axis=1), cells.mean(axis=0)
    msr = k * ((rows - grand) ** 2).sum() / (n - 1)
    msc = n * ((columns - grand) ** 2).sum() / (k - 1)
    mse = ((cells - rows[:, None] - columns + grand) ** 2).sum() / ((n - 1) * (k - 1))
    expected = (msr - mse) / (msr + (k - 1) * mse + k * (msc - mse) / n)
    assert agreement(man, cnn, 100, BOOTSTRAP)["icc"] == pytest.approx(expected, rel=1e-12)


def test_concordance_and_icc_fall_with_a_shift_that_correlation_does_not_see():
    """Lin 1989: y = x + 2 with x = 1..5: s_xy = s_xx = s_yy = 2, so CCC = 4 / (4 + 4) = 1 / 2."""
    block = agreement([1.0, 2, 3, 4, 5], [3.0, 4, 5, 6, 7], 100, BOOTSTRAP)
    assert block["ccc"] == pytest.approx(0.5)
    assert block["r2"] == pytest.approx(1)
    # MSR = 2 x 2.5 = 5, MSE = 0, MSC = 5 x 4 / 2 = 10: 5 / (5 + 2 x 10 / 5).
    assert block["icc"] == pytest.approx(5 / 9)


def test_deming_regression_finds_the_slope_where_least_squares_flattens_it():
    random = np.random.default_rng(3)
    truth = random.uniform(5, 50, 4000)
    man, cnn = truth + random.normal(0, 6, 4000), 1.5 + 0.9 * truth + random.normal(0, 6, 4000)
    block = agreement(man, cnn, 100, BOOTSTRAP)
    assert block["slope"] < 0.8
    assert block["deming_slope"] == pytest.approx(0.9, abs=0.02)
    assert block["deming_intercept_ml"] == pytest.approx(1.5, abs=0.6)


def test_deming_is_orthogonal_regression_when_both_err_alike(burdens):
    """The direction of the first principal component."""
    block = agreement(*burdens, 100, BOOTSTRAP)
    _, vectors = np.linalg.eigh(np.cov(*burdens))
    assert block["deming_slope"] == pytest.approx(vectors[1, -1] / vectors[0, -1])


def test_limits_of_the_ratio_leave_out_patients_without_a_burden():
    man, cnn = np.array([1.0, 2, 4, 8, 0, 3]), np.array([1.1, 2.4, 3.6, 8.8, 2, 0])
    block = agreement(man, cnn, 100, BOOTSTRAP)
    logs = np.log(cnn[:4] / man[:4])
    limits = np.exp(logs.mean() + 1.96 * logs.std(ddof=1) * np.array([-1, 1]))
    assert block["n_ratio"] == 4
    assert block["ratio"] == pytest.approx(np.exp(logs.mean()))
    assert block["limits_of_agreement_ratio"] == pytest.approx(limits)


def test_without_burdens_in_both_there_is_no_ratio():
    block = agreement([1.0, 2, 3, 0], [0.0, 0, 0, 4], 100, BOOTSTRAP)
    assert block["ratio"] is None
    assert "burden in both" in block["ratio_reason"]


def test_prediction_interval_by_hand():
    """x = 1..5, y = 2, 4, 5, 4, 5: slope 0.6, intercept 2.2, s^2 = 2.4 / 3, t(0.975, 3) = 3.1824.

    At x = 3 half the interval is t s sqrt(1 + 1/5); at x = 5 it is t s sqrt(1 + 1/5 + 4/10).
    """
    line = fit_line([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    assert (line.slope, line.intercept_ml) == (pytest.approx(0.6), pytest.approx(2.2))
    y, low, high = line.predict([3, 5])
    s = np.sqrt(0.8)
    assert y == pytest.approx([4.0, 5.2])
    assert high - y == pytest.approx(3.182446 * s * np.sqrt([1.2, 1.6]), rel=1e-6)
    assert y - low == pytest.approx(high - y)


def test_prediction_interval_holds_95_percent_of_new_patients():
    random = np.random.default_rng(8)
    inside = []
    for _ in range(400):
        man = random.uniform(1, 50, 31)
        cnn = 1 + 0.9 * man + random.normal(0, 2, 31)
        _, low, high = fit_line(man[:-1], cnn[:-1]).predict(man[-1:])
        inside.append(low[0] <= cnn[-1] <= high[0])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_equal_burdens_have_no_line_and_no_r2():
    block = agreement(np.full(5, 8.1), [8.0, 9, 8, 7, 8], 99, BOOTSTRAP)
    assert (block["r2"], block["slope"]) == (None, None)
    assert "all have the same burden" in block["r2_reason"]
    assert block["mean_absolute_difference_ml"] is not None
    assert fit_line(np.full(5, 8.1), [8.0, 9, 8, 7, 8]) is None


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_patients_for_r2(n):
    block = agreement([5.0, 9.0][:n], [6.0, 9.5][:n], 99, BOOTSTRAP)
    assert (block["r2"], block["all_patients"]["r2"]) == (None, None)
    assert block["all_patients"]["mean_absolute_difference_ml"] == pytest.approx([1.0, 0.75][n - 1])


def test_without_any_reference_volume_the_bias_is_null():
    block = agreement(np.zeros(4), [1.0, 2, 3, 4], 100, BOOTSTRAP)
    assert (block["volume_bias"], block["volume_bias_reason"]) == (None, "no reference volume")


def test_perfect_agreement():
    block = agreement([1.0, 5, 9, 30], [1.0, 5, 9, 30], 99, BOOTSTRAP)
    assert (block["r2"], block["mean_absolute_difference_ml"], block["n_outliers"]) == (pytest.approx(1), 0, 0)
