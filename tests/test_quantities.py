"""PET quantities of the patients side by side, by hand and against the agreement of the burden."""

import numpy as np
import pandas as pd
import pytest

from mtvlib.agreement import agreement
from mtvlib.intervals import Bootstrap
from mtvlib.quantities import QUANTITIES, quantities

BOOTSTRAP = Bootstrap(200, seed=1)


def of(**columns):
    return quantities(pd.DataFrame(columns), BOOTSTRAP)


def test_medians_by_hand():
    block = of(suvpeak_man=[1.0, 5.0, 3.0, 9.0], suvpeak_cnn=[2.0, 5.0, 3.5, 7.0])["suv_peak"]
    assert (block["n"], block["n_one_only"]) == (4, 0)
    assert (block["man"], block["cnn"]) == (4.0, 4.25)
    assert block["median_difference"] == 0.25  # of 1, 0, 0.5, -2
    low, high = block["median_difference_ci95"]
    assert -2 <= low <= 0.25 <= high <= 1


def test_a_patient_whom_one_delineation_lacks_is_counted_and_left_out():
    block = of(dmax_man_mm=[10.0, np.nan, 30.0, np.nan], dmax_cnn_mm=[12.0, 5.0, 30.0, np.nan])["dmax_mm"]
    assert (block["n"], block["n_one_only"]) == (2, 1)
    assert (block["man"], block["median_difference"]) == (20.0, 1.0)
    assert block["icc"] is None
    assert block["icc_reason"].startswith("fewer than three patients")


def test_icc_is_that_of_the_burden():
    random = np.random.default_rng(0)
    man = random.lognormal(2, 1, 40)
    cnn = man * random.lognormal(0, 0.3, 40)
    block = of(ttb_man_ml=man, ttb_cnn_ml=cnn)["mtv_ml"]
    whole = agreement(man, cnn, 99.0, BOOTSTRAP)["all_patients"]
    assert block["icc"] == pytest.approx(whole["icc"])
    assert block["icc_ci95"] == pytest.approx(whole["icc_ci95"])


def test_nobody_has_it():
    block = of(suvmax_man=[np.nan] * 3, suvmax_cnn=[1.0, np.nan, np.nan])["suv_max"]
    assert (block["n"], block["n_one_only"]) == (0, 1)
    assert block["man"] is None
    assert block["man_reason"] == "no patient has it by both delineations"


def test_one_patient_has_values_without_intervals():
    block = of(tlg_man=[3.0], tlg_cnn=[4.0])["tlg_g"]
    assert (block["man"], block["median_difference"], block["man_ci95"]) == (3.0, 1.0, None)


def test_quantities_without_their_columns_are_left_out():
    assert list(of(n_nodes_man=[1, 2], n_nodes_cnn=[1, 1])) == ["n_nodes"]
    assert set(QUANTITIES) >= {"suv_peak", "tlg_g", "largest_node_ml", "dmax_mm"}
