"""Names of the steps, and that the Snakefile means the same by them."""

from __future__ import annotations

import re

import pytest

from mtvlib import graph
from mtvlib.steps import project_root


def test_stages_hold_all_steps_in_the_order_of_the_flow():
    assert graph.stages(2)[:2] == [["1_cohort"], ["2_train_fold_0", "2_train_fold_1"]]
    assert [step for stage in graph.stages(3) for step in stage] == graph.step_names(3)


@pytest.mark.parametrize("step", graph.step_names(1))
def test_the_snakefile_has_the_steps_rule_and_product(step):
    snakefile = (project_root() / "Snakefile").read_text()
    rule = re.search(rf"^rule {graph.rule_of(step)}:.*?(?=^rule |\Z)", snakefile, re.DOTALL | re.MULTILINE)
    wildcard = re.sub(r"_\d+\.ipynb", "_{fold}.ipynb", graph.product_of(step))
    product = "notebooks/{chapter}.ipynb" if step in graph.CHAPTERS else wildcard
    assert f'"{product}"' in rule.group().partition("output:")[2].partition("params:")[0]


def test_a_batch_is_told_from_other_steps():
    assert graph.part_of("1_prepare_2_of_13") == (2, 13)
    assert graph.rule_of("1_prepare_2_of_13") == "prepare"
    assert graph.part_of("3_predict_0_of_4") == (0, 4)
    assert graph.rule_of("3_predict_0_of_4") == "predict"
    assert [graph.part_of(step) for step in graph.step_names(2)] == [None] * len(graph.step_names(2))
