"""The threshold methods beside the network, from arrays to the block of summary.json."""

import json

import numpy as np
import pandas as pd
import pytest

from mtvlib import comparators
from mtvlib.params import Params
from mtvlib.thresholds import threshold_methods

MM = (2.5, 2.5, 2.5)
PARAMS = Params(bootstrap_resamples=100)


def patient(side, node=True):
    """SUV and reference of a primary (SUV 10) of side^3 voxels and a node (SUV 3) of 27, in a background of 1."""
    reference = np.zeros((30, 30, 30), np.uint8)
    reference[6 : 6 + side, 6 : 6 + side, 6 : 6 + side] = 1
    if node:
        reference[22:25, 22:25, 22:25] = 2
    return np.choose(reference, [1.0, 10.0, 3.0]), reference


def rows(n=4, **more):
    return [row for i in range(n) for row in comparators.patient_rows(f"P{i}", *patient(3 + i, **more), MM, PARAMS)]


def cohort(n=4, external=0):
    names = [f"P{i}" for i in range(n)]
    return pd.DataFrame({"patient": names, "cohort": ["main"] * (n - external) + ["external"] * external})


def network(table, found=1.0):
    """patients.csv of a network that finds this share of each lesion and nothing else."""
    patients = table[table["method"] == "max_50"].drop(columns="method").copy()
    for target, volume in (("primary", "mtv_primary"), ("nodes", "mtv_nodes"), ("all", "ttb")):
        man = patients[f"{volume}_man_ml"]
        patients[f"{volume}_cnn_ml"] = patients[f"both_{target}_ml"] = found * man
        patients[f"dsc_{target}"] = 2 * found / (1 + found)
    return patients


def test_a_patients_rows_by_hand():
    found = {row["method"]: row for row in comparators.patient_rows("P0", *patient(4), MM, PARAMS)}
    assert list(found) == list(threshold_methods())
    perfect, blind = found["max_41"], found["suv_4_0"]
    assert (perfect["dsc_primary"], perfect["dsc_nodes"], perfect["ttb_cnn_ml"]) == (1, 1, 91 / 64)
    assert (blind["dsc_primary"], blind["dsc_nodes"], blind["failed_nodes"]) == (1, 0, True)  # the node has SUV 3
    assert blind["dsc_all"] == pytest.approx(2 * 64 / (64 + 91))


def test_small_rois_are_neither_seeds_nor_results():
    suv, reference = patient(4)
    reference[0, 0, :6], suv[0, 0, :6] = 1, 20.0  # 0.09 ml
    suv[22:25, 22:25, 22:25] = 1.0
    suv[22, 22, 22] = 30.0  # the node's one hot voxel
    found = {row["method"]: row for row in comparators.patient_rows("P0", suv, reference, MM, PARAMS)}
    assert found["max_50"]["ttb_man_ml"] == 91 / 64
    assert found["max_50"]["mtv_nodes_cnn_ml"] == 0
    assert found["max_50"]["mtv_primary_cnn_ml"] == 1


def test_the_table_is_tidy_and_knows_the_cohort():
    table = comparators.table(rows(2), cohort(2).assign(site="Ash", person=["A", "A"], age=60))
    assert table.columns[:5].tolist() == ["method", "patient", "cohort", "site", "person"]
    assert table["method"].drop_duplicates().tolist() == list(threshold_methods())
    assert table["patient"].tolist() == ["P0", "P1"] * 5


def test_a_block_for_each_partition_that_has_patients():
    table = comparators.table(rows(4), cohort(4, external=1))
    blocks = comparators.summary_blocks(table, network(table, 0.5), PARAMS)
    main = json.loads(json.dumps(blocks, allow_nan=False))["cross_validation"]
    assert set(blocks) == {"cross_validation", "external_testing"}
    assert main["needs_seed"] is True
    assert "upper bound" in main["seeds"]
    scores = {one["method"]: one["delineation"] for one in main["methods"]}
    assert scores["max_50"]["primary"]["cohort_dsc"] == 1
    assert scores["suv_4_0"]["nodes"]["n_failed"] == 3
    (row,) = [
        one
        for one in main["differences"]
        if (one["method"], one["measure"], one["target"]) == ("max_50", "cohort_dsc", "all")
    ]
    assert (row["other"], row["other_value"]) == ("cnn", pytest.approx(2 / 3))
    assert row["difference"] == pytest.approx(1 / 3)
    assert set(comparators.summary_blocks(comparators.table(rows(2), cohort(2)), network(table)[:2], PARAMS)) == {
        "cross_validation"
    }


def test_no_node_anywhere_is_null_with_its_reason():
    table = comparators.table(rows(3, node=False), cohort(3))
    block = comparators.summary_blocks(table, network(table), PARAMS)["cross_validation"]
    for one in block["methods"]:
        assert one["delineation"]["nodes"]["cohort_dsc"] is None
        assert one["delineation"]["nodes"]["reason"].startswith("no patient has a node metastasis")
    assert all(one["reason"] for one in block["differences"] if one["target"] == "nodes")


def test_a_single_patient():
    table = comparators.table(rows(1), cohort(1))
    block = comparators.summary_blocks(table, network(table, 0.5), PARAMS)["cross_validation"]
    assert block["methods"][0]["delineation"]["all"]["mean_dsc_ci95"] is None
    assert all(one["difference_ci95"] is None for one in block["differences"])
