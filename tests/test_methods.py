"""Several methods evaluated alike and compared, from label maps on disk."""

import json

import numpy as np
import pandas as pd
import pytest

from mtvlib import volume
from mtvlib.errors import InputError
from mtvlib.methods import Seeding, evaluate_methods, method_folders
from mtvlib.params import Params
from mtvlib.thresholds import threshold_methods
from tests.conftest import PET_GRID, tiny_images

PARAMS = Params(bootstrap_resamples=100)


def write_masks(folder, labels, n=3):
    """The same label map on the references' grid for every patient of `tiny_cohort`."""
    for number in range(n):
        volume.write_image(volume.to_image(labels.astype(np.uint8), PET_GRID), folder / f"P{number}.nii.gz")
    return folder


@pytest.fixture
def masks(tmp_path):
    """A perfect tool and one that finds the primaries (4 x 4 x 4 voxels of 4 mm) alone."""
    reference = tiny_images()["reference"][0]
    return {
        "perfect": write_masks(tmp_path / "perfect", reference),
        "half": write_masks(tmp_path / "half", np.where(reference == 1, 1, 0)),
    }


def read_json(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# --- names


def test_names_and_folders(tmp_path):
    found = method_folders(tmp_path, ["a=x", "b=y/z=1"], with_thresholds=True)
    assert {name: str(folder) for name, folder in found.items()} == {
        "predictions": str(tmp_path),
        "a": "x",
        "b": "y/z=1",
    }
    assert method_folders(None, [], with_thresholds=True) == {}
    assert list(method_folders(None, ["max_41=x"], with_thresholds=False)) == ["max_41"]


@pytest.mark.parametrize("spec", ["nnunet", "=x", "a=", "../a=x", "a/b=x", ".a=x", "a b=x", "comparison.csv=x"])
def test_an_unknown_form_of_a_method_is_refused_with_an_example(spec):
    with pytest.raises(InputError, match=r"a method must be name=DIR.*Remedy: write for instance") as caught:
        method_folders(None, [spec], with_thresholds=False)
    assert caught.value.value == spec


@pytest.mark.parametrize("specs", [["a=x", "a=y"], ["a=x", "A=y"], ["predictions=x"], ["max_41=x"]])
def test_a_name_that_is_taken_is_refused(specs):
    with pytest.raises(InputError, match="two methods have one name"):
        method_folders(None, specs, with_thresholds=True)


# --- evaluating


def test_two_methods_are_evaluated_apart_and_compared(tiny_cohort, masks, tmp_path):
    told = []
    summaries, compared = evaluate_methods(
        tiny_cohort(), masks, tmp_path / "out", PARAMS, progress=lambda *stage: told.append(stage)
    )
    assert list(summaries) == ["perfect", "half"]
    for name in masks:
        assert {"patients.csv", "lesions.csv", "summary.json"} <= {p.name for p in (tmp_path / "out" / name).iterdir()}
    assert summaries["half"]["cross_validation"]["delineation"]["nodes"]["cohort_dsc"] == 0
    (row,) = compared[(compared["measure"] == "cohort_dsc") & (compared["target"] == "all")].to_dict("records")
    assert (row["method"], row["other"]) == ("half", "perfect")
    assert row["difference"] == pytest.approx(2 * 64 / (64 + 72) - 1)
    written = read_json(tmp_path / "out" / "comparison.json")
    assert (written["methods"], written["needs_seed"]) == (["perfect", "half"], [])
    assert len(written["cross_validation"]) == len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == len(compared)
    assert told == [(name, done, 3) for name in masks for done in (1, 2, 3)]


def test_one_method_has_nothing_to_be_compared_with(tiny_cohort, masks, tmp_path):
    folders = {"perfect": masks["perfect"]}
    summaries, compared = evaluate_methods(tiny_cohort(), folders, tmp_path / "out", PARAMS)
    assert (list(summaries), compared) == (["perfect"], None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["perfect"]


def test_thresholds_say_that_they_were_given_seeds(tiny_cohort, masks, tmp_path):
    summaries, _ = evaluate_methods(tiny_cohort(), {}, tmp_path / "out", PARAMS, seeding=Seeding())
    assert list(summaries) == list(threshold_methods())
    for name, summary in summaries.items():
        assert summary["needs_seed"] is True
        assert (summary["seeds"], summary["margin_mm"]) == ("the reference's lesions", 10.0)
        # The lesions have SUV 8.5 and more, all around it 1 at most.
        assert summary["cross_validation"]["delineation"]["all"]["cohort_dsc"] == 1, name
    assert read_json(tmp_path / "out" / "max_50" / "summary.json")["needs_seed"] is True
    assert read_json(tmp_path / "out" / "comparison.json")["needs_seed"] == list(threshold_methods())


def test_seeds_of_a_folder_take_the_place_of_the_reference(tiny_cohort, tmp_path):
    """One point in the primary, called a node: what is found is the primary's cube as a node."""
    point = np.zeros(PET_GRID.size)
    point[4, 4, 4] = 2
    seeding = Seeding(write_masks(tmp_path / "seeds", point), margin_mm=20.0)
    summaries, _ = evaluate_methods(tiny_cohort(), {}, tmp_path / "out", PARAMS, seeding=seeding)
    patients = pd.read_csv(tmp_path / "out" / "suv_2_5" / "patients.csv")
    assert patients["mtv_nodes_cnn_ml"].tolist() == pytest.approx([64 * 0.064] * 3)
    assert patients["mtv_primary_cnn_ml"].tolist() == [0] * 3
    assert (summaries["suv_2_5"]["seeds"], summaries["suv_2_5"]["margin_mm"]) == ("label maps of seeds", 20.0)


def test_missing_files_are_found_before_anything_is_computed(tiny_cohort, masks, tmp_path):
    (masks["half"] / "P2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"half: 1 of 3 patients have no prediction: P2\."):
        evaluate_methods(tiny_cohort(), masks, tmp_path / "out", PARAMS)
    seeding = Seeding(masks["half"])
    with pytest.raises(InputError, match=r"half: 1 of 3 patients have no seed map: P2\."):
        evaluate_methods(tiny_cohort(), {"perfect": masks["perfect"]}, tmp_path / "out", PARAMS, seeding=seeding)
    assert not (tmp_path / "out").exists()


def test_seeds_on_another_grid_are_refused(tiny_cohort, tmp_path):
    seeds = write_masks(tmp_path / "seeds", np.zeros(PET_GRID.size))
    image = volume.read_image(seeds / "P1.nii.gz")
    image.SetOrigin((0.0, 0.0, 0.0))
    volume.write_image(image, seeds / "P1.nii.gz")
    with pytest.raises(InputError, match=r"patient P1, file .*seeds/P1\.nii\.gz: the grids are .* mm apart"):
        evaluate_methods(tiny_cohort(), {}, tmp_path / "out", PARAMS, seeding=Seeding(seeds))
