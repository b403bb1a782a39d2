import dataclasses
import random

import numpy as np
import pandas as pd
import pytest
from conftest import CT_GRID, PET_GRID, tiny_images, tiny_row, write_table

from mtvlib import cohort
from mtvlib.cohort import assign_folds, check_cohort, flow, fold_patients, read_cohort
from mtvlib.errors import InputError
from mtvlib.params import Params
from mtvlib.volume import to_image, write_image

THREE_FOLDS = Params(folds=3, validation_fraction=0.2)
# Paper, Methods: the main dataset's sites.
SITES = {
    "Berlin": 175,
    "Dresden": 24,
    "Poznan": 22,
    "Head-Neck-PET-CT": 269,
    "HN1": 34,
    "HNSCC": 32,
    "TCGA-HNSC": 11,
    "QIN": 131,
}


def codes(path, params=None):
    return {finding.code for finding in check_cohort(path, params)}


def only(findings, code):
    found = [finding for finding in findings if finding.code == code]
    assert len(found) == 1, [str(finding) for finding in findings]
    return found[0]


# --- reading


def test_sound_cohort_is_read_typed_with_absolute_paths(tiny_cohort):
    path = tiny_cohort(2, {0: {"patient": "001", "death": "1", "followup_months": "12.5", "note": "kept"}})
    table = read_cohort(path)
    assert table["patient"].tolist() == ["001", "P1"]
    assert table["person"].tolist() == ["001", "P1"]
    assert table["death"].isna().tolist() == [False, True]
    assert table.loc[0, "followup_months"] == 12.5
    assert table["note"].tolist() == ["kept", ""]
    assert table["exclusion"].tolist() == ["", ""]
    assert table.loc[1, "pet"] == str(path.parent / "images/P1_pet.nii.gz")
    assert cohort.relative_paths(table, path.parent).loc[1, "ct"] == "images/P1_ct.nii.gz"
    assert check_cohort(path) == []


@pytest.mark.parametrize(("separator", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-8-sig")])
def test_tables_of_spreadsheet_programs(tmp_path, separator, encoding):
    months = "12,5" if separator == ";" else "12.5"
    row = tiny_row(tmp_path, "P1", site="Tübingen", followup_months=months, exclusion="")
    table = read_cohort(write_table(tmp_path / "cohort.csv", [row], separator, encoding))
    assert table.loc[0, ["patient", "site", "followup_months"]].tolist() == ["P1", "Tübingen", 12.5]


def test_empty_columns_and_rows_of_a_spreadsheet_are_ignored(tiny_cohort):
    path = tiny_cohort(2)
    lines = [line + ",," for line in path.read_text().splitlines()]
    path.write_text("\n".join([lines[0], "", ",,,,,,,", *lines[1:]]))
    assert read_cohort(path)["patient"].tolist() == ["P0", "P1"]


def test_a_decimal_comma_in_a_comma_separated_table_is_refused(tmp_path):
    row = tiny_row(tmp_path, "P1", followup_months="12,5")
    with pytest.raises(InputError, match=r"followup_months.*'12,5'"):
        read_cohort(write_table(tmp_path / "cohort.csv", [row]))


def test_unreadable_tables_are_refused_and_reported(tmp_path):
    path = tmp_path / "cohort.csv"
    contents = {
        "no such cohort": None,
        "not UTF-8": "patient,site\nP1,Tübingen\n".encode("latin-1"),
        "no patients": b"patient,cohort,site,pet,ct\n\n",
        "not a table": b"patient,cohort\n" + b"x" * 200_000,
        "occur twice": b"patient,cohort,site,pet,ct,pet\nP1,main,B,a,b,c\n",
    }
    for problem, content in contents.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=problem):
            read_cohort(path)
        finding = only(check_cohort(path), "cohort_file")
        assert problem in finding.message
        assert finding.remedy


def test_a_folder_in_place_of_the_table_is_told_with_a_remedy(tmp_path):
    finding = only(check_cohort(tmp_path), "cohort_file")
    assert str(finding) == (
        f"error: file {tmp_path}: cannot be read: Is a directory. Remedy: name the file cohort.csv itself."
    )


def test_a_finding_without_a_remedy_does_not_speak_of_one():
    assert str(cohort.Finding("error", "x", "is wrong.", "", row=2)) == "error: row 2: is wrong."


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path):
    path = write_table(tmp_path / "cohort.csv", [{"Patient": "P1", "cohort": "main", "pett": "a", "ct": "b"}])
    with pytest.raises(InputError) as error:
        read_cohort(path)
    text = str(error.value)
    assert "'patient' is missing. Remedy: rename 'Patient' to 'patient'" in text
    assert "'pet' is missing. Remedy: rename 'pett'" in text
    assert "'site' is missing. Remedy: add it" in text


@pytest.mark.parametrize("missing", ["patient", "cohort", "site", "pet", "ct"])
def test_no_known_column_is_to_be_renamed_to_a_missing_one(tiny_cohort, missing):
    path = tiny_cohort(1, {0: {"person": "A", "stage": "II", "death": "0"}})
    table = pd.read_csv(path).drop(columns=missing)
    table.to_csv(path, index=False)
    assert only(check_cohort(path), "missing_column").remedy == "add it; README.md describes the columns."


def test_a_misspelt_optional_column_is_a_warning(tiny_cohort):
    finding = only(check_cohort(tiny_cohort(1, {0: {"followup_month": "3"}})), "unknown_column")
    assert (finding.severity, finding.value) == ("warning", "followup_month")
    assert "followup_months" in finding.remedy


BAD_CELLS = {
    "unknown_cohort": ({"cohort": "training"}, "'training'"),
    "no_site": ({"site": ""}, "empty"),
    "unsafe_name": ({"patient": "../P9"}, "../P9"),
    "duplicate_patient": ({"patient": "p1"}, "row 3"),
    "missing_file": ({"ct": "images/absent.nii.gz"}, "file images/absent.nii.gz"),
    "absolute_path": ({"pet": "/etc/passwd"}, "file /etc/passwd"),
    "path_outside": ({"reference": "../reference.nii.gz"}, "file ../reference.nii.gz"),
    "path_form": ({"pet": "images\\P0_pet.nii.gz"}, "file images\\P0_pet.nii.gz"),
    "duplicate_image": ({"pet": "images/P1_pet.nii.gz"}, "row 3"),
    "bad_number": ({"followup_months": "-3"}, "'-3'"),
    "person_in_both": ({"cohort": "external", "person": "P1"}, "row 3"),
}


@pytest.mark.parametrize("code", BAD_CELLS)
def test_a_bad_cell_is_named_with_row_patient_value_and_remedy(tiny_cohort, code):
    changes, told = BAD_CELLS[code]
    path = tiny_cohort(3, {2: changes})
    finding = only(check_cohort(path), code)
    assert (finding.severity, finding.row, finding.patient) == ("error", 4, changes.get("patient", "P2"))
    assert told in str(finding)
    assert finding.remedy
    assert finding.as_dict()["code"] == code
    with pytest.raises(InputError) as error:
        read_cohort(path)
    assert "row 4" in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value", "sound"),
    [
        ("death", "1", True),
        ("death", "1.0", True),
        ("death", "", True),
        ("death", "2", False),
        ("death", "yes", False),
        ("survival_eligible", "0.5", False),
        ("followup_months", "0", True),
        ("followup_months", "NA", False),
        ("followup_months", "nan", False),
        ("followup_months", "inf", False),
        ("age", "61", True),
    ],
)
def test_numbers(tiny_cohort, name, value, sound):
    assert ("bad_number" not in codes(tiny_cohort(1, {0: {name: value}}))) == sound


def test_a_site_in_both_cohorts_is_a_warning(tiny_cohort):
    path = tiny_cohort(4, {1: {"site": "Munich"}, 2: {"cohort": "external"}, 3: {"cohort": "external"}})
    finding = only(check_cohort(path), "site_in_both")
    assert (finding.severity, finding.row, finding.patient) == ("warning", 4, "P2")
    assert "the site Berlin are in both cohorts" in finding.message
    apart = {2: {"cohort": "external", "site": "Bonn"}, 3: {"cohort": "external", "exclusion": "no uptake"}}
    assert "site_in_both" not in codes(tiny_cohort(4, apart))


def test_all_problems_are_listed_at_once(tiny_cohort):
    path = tiny_cohort(4, {0: {"cohort": "x"}, 1: {"death": "dead"}, 2: {"pet": "gone.nii"}, 3: {"patient": "P 3"}})
    with pytest.raises(InputError) as error:
        read_cohort(path)
    lines = str(error.value).splitlines()
    assert "4 problems" in lines[0]
    assert [line.split(",")[0].strip() for line in lines[1:5]] == ["row 2", "row 3", "row 4", "row 5"]
    assert "gone.nii" in lines[3]


def test_a_link_out_of_the_cohort_is_refused_and_one_within_is_not(tiny_cohort, tmp_path_factory):
    path = tiny_cohort(2)
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.nii.gz"
    write_image(to_image(*tiny_images()["pet"]), secret)
    pet = path.parent / "images/P0_pet.nii.gz"
    pet.unlink()
    pet.symlink_to(secret)
    assert only(check_cohort(path), "path_outside").row == 2
    pet.unlink()
    (path.parent / "store").mkdir()
    (path.parent / "images/P0_ct.nii.gz").rename(path.parent / "store/ct.nii.gz")
    (path.parent / "images/P0_ct.nii.gz").symlink_to("../store/ct.nii.gz")
    assert codes(path) == {"missing_file"}
    pet.symlink_to(pet.name)
    assert codes(path) == {"missing_file"}


def test_a_row_of_another_length_is_an_error(tiny_cohort):
    path = tiny_cohort(2)
    path.write_text(path.read_text() + "P7,main,Berlin\n")
    assert only(check_cohort(path), "row_length").row == 4


def test_excluded_rows_are_kept_and_their_images_not_needed(tiny_cohort):
    path = tiny_cohort(3, {1: {"exclusion": "metal artefacts", "pet": "", "ct": "gone.nii"}})
    table = read_cohort(path)
    assert len(table) == 3
    assert check_cohort(path) == []


# --- images


def bad_image(name, change):
    """A patient's tiny images with one of them changed."""
    images = tiny_images()
    array, grid = images[name]
    images[name] = change(array.copy(), grid)
    return images


def spotted(array, value):
    array[0, 0, 0] = value
    return array


def moved(grid, mm):
    return dataclasses.replace(grid, origin_mm=tuple(side + mm for side in grid.origin_mm))


def shortened(grid):
    return dataclasses.replace(grid, size=(*grid.size[:2], 8))


BAD_IMAGES = {
    "Bq/ml": ("not_suv", "error", "pet", lambda array, grid: (array * 5000, grid), "maximum 4"),
    "one pixel of Bq/ml": ("not_suv", "error", "pet", lambda array, grid: (spotted(array, 1200.0), grid), "1200"),
    "many pixels above 100": ("not_suv", "error", "pet", lambda array, grid: (array * 40, grid), "percentile 3"),
    "negative": ("not_suv", "error", "pet", lambda array, grid: (array - 5, grid), "%"),
    "hot": ("high_suv", "warning", "pet", lambda array, grid: (spotted(array, 150.0), grid), "150"),
    "normalised PET": ("low_suv", "warning", "pet", lambda array, grid: (array / 10, grid), "maximum 0.898"),
    "PET NaN": ("bad_image", "error", "pet", lambda array, grid: (spotted(array, np.nan), grid), "1 of 3072"),
    "constant PET": ("bad_image", "error", "pet", lambda array, grid: (array * 0, grid), "0"),
    "CT without offset": ("not_hu", "error", "ct", lambda array, grid: (array + 1024, grid), "minimum 24"),
    "windowed CT": ("not_hu", "error", "ct", lambda array, grid: (array.clip(-150, 150), grid), "-150"),
    "CT elsewhere": ("far_apart", "error", "ct", lambda array, grid: (array, moved(grid, 500)), "origin"),
    "short CT": ("short_ct", "warning", "ct", lambda array, grid: (array[..., :8], shortened(grid)), "size"),
    "class 3": ("bad_image", "error", "reference", lambda array, grid: (spotted(array, 3), grid), "3"),
    "no lesion": ("empty_reference", "warning", "reference", lambda array, grid: (array * 0, grid), None),
    "reference elsewhere": ("far_apart", "error", "reference", lambda array, grid: (array, moved(grid, 200)), "origin"),
    "half outside": ("reference_outside", "error", "reference", lambda array, grid: (array, moved(grid, -24)), "%"),
    "mirrored": ("cold_reference", "warning", "reference", lambda array, grid: (array[:, ::-1], grid), "SUV"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_with_row_patient_file_value_and_remedy(tiny_cohort, name):
    code, severity, which, change, value = BAD_IMAGES[name]
    path = tiny_cohort(2)
    for image, (array, grid) in bad_image(which, change).items():
        write_image(to_image(array, grid), path.parent / f"images/P1_{image}.nii.gz")
    findings = check_cohort(path)
    assert {finding.row for finding in findings} == {3}
    finding = next(finding for finding in findings if finding.code == code)
    assert (finding.severity, finding.patient) == (severity, "P1")
    assert finding.file.endswith(f"P1_{which}.nii.gz")
    assert finding.remedy
    assert value is None or value in finding.value


def test_what_is_wrong_with_an_image_reads_as_a_sentence(tiny_cohort):
    path = tiny_cohort(3)
    write_image(to_image(tiny_images()["pet"][0] * 0, PET_GRID), path.parent / "images/P0_pet.nii.gz")
    (path.parent / "images/P1_ct.nii.gz").write_bytes(b"no image")
    labels, grid = bad_image("reference", lambda array, grid: (spotted(array, 3), grid))["reference"]
    write_image(to_image(labels, grid), path.parent / "images/P2_reference.nii.gz")
    constant, damaged, foreign = (str(finding) for finding in check_cohort(path))
    assert "the PET: every voxel has the same value (found: 0.0). Remedy: export" in constant
    assert "the CT is truncated or damaged (Not a gzipped file (b'no')). Remedy: copy" in damaged
    assert "the reference: a label map may hold 0, 1, 2 only (found: 3). Remedy: recode" in foreign


def test_unreadable_images_of_every_row_are_found_in_one_go(tiny_cohort):
    path = tiny_cohort(3)
    (path.parent / "images/P0_pet.nii.gz").write_bytes(b"no image")
    (path.parent / "images/P2_ct.nii.gz").write_bytes(b"no image")
    seen = []
    findings = check_cohort(path, progress=lambda done, total: seen.append((done, total)))
    assert [(finding.row, finding.code) for finding in findings] == [(2, "bad_image"), (4, "bad_image")]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_same_scan_under_two_names_is_found(tiny_cohort):
    path = tiny_cohort(3)
    copy = (path.parent / "images/P0_pet.nii.gz").read_bytes()
    (path.parent / "images/P2_pet.nii.gz").write_bytes(copy)
    finding = only(check_cohort(path), "duplicate_image")
    assert (finding.row, "row 2" in finding.message) == (4, True)


def test_tiny_images_are_what_the_tests_take_them_for():
    (reference, grid), (ct, _) = tiny_images()["reference"], tiny_images()["ct"]
    assert (np.bincount(reference.ravel()).tolist()[1:], grid) == ([64, 8], PET_GRID)
    assert ct.shape == CT_GRID.size


# --- folds


def paper_cohort():
    rows = [(f"{site}-{i:03d}", site) for site, n in SITES.items() for i in range(n)]
    table = pd.DataFrame(rows, columns=["patient", "site"])
    return table.assign(cohort="main", pet="p", ct="c", reference="r", exclusion="", person=table["patient"])


def test_the_papers_cohort_is_split_64_16_20_balanced_over_sites():
    table = assign_folds(paper_cohort(), Params())
    assert len(table) == 698
    tested = []
    for fold in range(5):
        parts = fold_patients(table, fold, Params())
        for part, share in ((parts.train, 0.64), (parts.validation, 0.16), (parts.test, 0.20)):
            assert abs(len(part) - share * 698) <= 1
            sites = pd.Series(part).str.rsplit("-", n=1).str[0].value_counts()
            for site, n in SITES.items():
                assert abs(sites.get(site, 0) - share * n) < 2, (fold, site)
        assert not set(parts.train) & set(parts.validation)
        assert set(parts.train) | set(parts.validation) == set(table["patient"]) - set(parts.test)
        tested += parts.test
    assert sorted(tested) == sorted(table["patient"])


def test_folds_do_not_depend_on_the_order_of_rows_but_on_the_seed():
    table = paper_cohort()
    shuffled = table.sample(frac=1, random_state=3)
    first, second = assign_folds(table, Params()), assign_folds(shuffled, Params())
    assert first.set_index("patient")["fold"].to_dict() == second.set_index("patient")["fold"].to_dict()
    assert fold_patients(first, 2, Params()) == fold_patients(second, 2, Params())
    other = assign_folds(table, Params(seed=1))
    assert first["fold"].tolist() != other["fold"].tolist()


def test_folds_are_the_same_for_ever():
    # Not a random generator's order, which may change between versions: these are hashes.
    table = paper_cohort().iloc[:10]
    assert assign_folds(table, Params())["fold"].tolist() == [2, 3, 3, 4, 0, 1, 0, 1, 4, 2]


def test_all_scans_of_a_person_stay_together():
    table = paper_cohort()
    chance = random.Random(0)
    table["person"] = [f"human{chance.randrange(300)}" for _ in range(len(table))]
    table = assign_folds(table, Params())
    assert table.groupby("person")["fold"].nunique().max() == 1
    person = table.set_index("patient")["person"]
    for fold in range(5):
        parts = fold_patients(table, fold, Params())
        train, validation, test = ({*person[part]} for part in (parts.train, parts.validation, parts.test))
        assert train.isdisjoint(validation | test)
        assert validation.isdisjoint(test)
        assert len(parts.train) + len(parts.validation) + len(parts.test) == 698
        assert len(parts.validation) == pytest.approx(0.16 * 698, rel=0.25)


def test_external_and_excluded_patients_are_in_no_fold():
    table = paper_cohort().iloc[:9].copy()
    table.loc[0, "cohort"] = "external"
    table.loc[1, "exclusion"] = "no sizable uptake"
    table.loc[2, "ct"] = ""
    table.loc[3, "reference"] = ""
    assigned = assign_folds(table, THREE_FOLDS)
    assert assigned["split"].tolist() == ["external_testing", *["excluded"] * 3, *["cross_validation"] * 5]
    assert assigned["fold"].tolist()[:4] == [-1] * 4
    assert assigned["exclusion"].tolist()[1:4] == ["no sizable uptake", "no CT", "no reference"]
    assert table["exclusion"].tolist()[2] == ""
    alone = assign_folds(table, THREE_FOLDS.model_copy(update={"channels": ["pet"]}))
    assert alone["split"].tolist()[2] == "cross_validation"
    with pytest.raises(InputError, match="no fold 3"):
        fold_patients(assigned, 3, THREE_FOLDS)


@pytest.mark.parametrize(
    ("persons", "folds", "enough"), [(4, 5, False), (5, 5, True), (2, 2, False), (3, 2, False), (4, 2, True)]
)
def test_too_few_patients_for_the_folds(tiny_cohort, persons, folds, enough):
    params = Params(folds=folds)
    path = tiny_cohort(persons)
    assert ("too_few_patients" in codes(path, params)) != enough
    if enough:
        parts = [fold_patients(assign_folds(read_cohort(path, params), params), fold, params) for fold in range(folds)]
        assert all(part.train and part.validation and part.test for part in parts)
    else:
        with pytest.raises(InputError, match="persons in the main cohort"):
            read_cohort(path, params)
        with pytest.raises(InputError, match="persons in the main cohort"):
            assign_folds(read_cohort(path), params)


def test_two_scans_of_one_person_count_once_for_the_folds(tiny_cohort):
    path = tiny_cohort(5, {0: {"person": "A"}, 1: {"person": "A"}})
    assert "4 can be used" in only(check_cohort(path, Params()), "too_few_patients").message


# --- leave one site out

BY_SITE = Params(split_by="site", folds=len(SITES))


def test_each_fold_tests_one_site_in_the_order_of_their_names():
    table = assign_folds(paper_cohort(), BY_SITE)
    assert table.groupby("site")["fold"].unique().map(list).to_dict() == {
        site: [fold] for fold, site in enumerate(sorted(SITES))
    }
    site_of = table.set_index("patient")["site"]
    for fold, site in enumerate(sorted(SITES)):
        parts = fold_patients(table, fold, BY_SITE)
        assert len(parts.test) == SITES[site]
        assert set(site_of[parts.test]) == {site}
        assert site not in set(site_of[parts.train + parts.validation])
        assert len(parts.validation) == round(0.16 * 698)
        shares = site_of[parts.validation].value_counts()
        for other, n in SITES.items():  # evenly over the sites that are left
            if other != site:
                assert abs(shares.get(other, 0) - n * len(parts.validation) / (698 - SITES[site])) < 2


def test_folds_that_are_not_as_many_as_sites_are_refused_with_both_numbers():
    with pytest.raises(InputError) as error:
        assign_folds(paper_cohort(), Params(split_by="site"))
    assert "folds is 5 for 8 sites" in str(error.value)
    assert "Berlin, Dresden" in str(error.value)
    assert error.value.remedy == "set `folds: 8`."
    assert error.value.exit_code == 2


def test_external_and_excluded_sites_are_no_folds():
    table = paper_cohort()
    table.loc[table["site"] == "QIN", "cohort"] = "external"
    table.loc[table["site"] == "HN1", "exclusion"] = "no sizable uptake"
    with pytest.raises(InputError, match="folds is 8 for 6 sites"):
        assign_folds(table, BY_SITE)
    assigned = assign_folds(table, Params(split_by="site", folds=6))
    assert set(assigned.loc[assigned["fold"] >= 0, "site"]) == set(SITES) - {"QIN", "HN1"}


def test_one_site_cannot_be_left_out():
    with pytest.raises(InputError, match=r"needs two sites in the main cohort \(found: Berlin\)"):
        assign_folds(paper_cohort().iloc[:20], Params(split_by="site", folds=2))


def test_a_person_seen_at_two_sites_is_named_where_sites_are_folds(tiny_cohort):
    path = tiny_cohort(
        6, {i: {"site": "Bonn"} for i in (3, 4, 5)} | {0: {"person": "A"}, 5: {"person": "A", "site": "Bonn"}}
    )
    params = Params(split_by="site", folds=2)
    finding = only(check_cohort(path, params), "person_at_two_sites")
    assert "person A" in finding.message
    assert finding.value == "Berlin, Bonn"
    with pytest.raises(InputError, match="person A was seen at several sites"):
        read_cohort(path, params)
    assert "person_at_two_sites" not in codes(path, Params(folds=2))


def test_a_site_that_holds_nearly_everybody_cannot_be_left_out(tiny_cohort):
    path = tiny_cohort(4, {3: {"site": "Bonn"}})
    finding = only(check_cohort(path, Params(split_by="site", folds=2)), "too_few_patients")
    assert "without the site Berlin, 1 person" in finding.message


def test_flow_of_the_papers_patients():
    # Paper, Methods: 1133 screened, 165 without CT, 45 with artefacts, 44 without uptake, 879 = 698 + 181 analysed.
    main = paper_cohort()
    external = main.iloc[:181].assign(cohort="external", patient=[f"E{i}" for i in range(181)])
    external["site"] = ["Munich"] * 166 + ["Limassol"] * 15
    left_out = main.iloc[:254].assign(patient=[f"X{i}" for i in range(254)])
    left_out["exclusion"] = [""] * 165 + ["metal artefacts"] * 45 + ["no sizable uptake"] * 44
    left_out.loc[left_out["exclusion"] == "", "ct"] = ""
    table = pd.concat([main, external, left_out], ignore_index=True)
    table["person"] = table["patient"]
    counts = flow(assign_folds(table, Params()))
    assert (counts["screened"], counts["included"]) == (1133, 879)
    assert counts["excluded"] == {"no CT": 165, "metal artefacts": 45, "no sizable uptake": 44}
    assert counts["partitions"]["cross_validation"] == {"n": 698, "sites": SITES}
    assert counts["partitions"]["external_testing"] == {"n": 181, "sites": {"Munich": 166, "Limassol": 15}}
