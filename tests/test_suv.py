"""Factors of SUV against published ones of eight real series, and against reference objects computed here by hand."""

import json
import math

import numpy as np
import pytest
from pydicom import Dataset

from mtvlib.dicom import pet_series, read_pet, read_pet_suv
from mtvlib.errors import Refusal
from mtvlib.suv import Clinical, body_surface_m2, mean_count_time_s, suv_factors
from mtvlib.volume import to_array
from tests import dicom_builder

# --- eight real series


def header_from(values):
    """A slice's header from the published JSON of its attributes."""
    header, injection = Dataset(), Dataset()
    for name, value in values.items():
        if name == "PhilipsPETPrivateGroup":
            block = header.private_block(0x7053, "Philips PET Private Group", create=True)
            for element, key in ((0x00, "SUVScaleFactor"), (0x09, "ActivityConcentrationScaleFactor")):
                if key in value:
                    block.add_new(element, "DS", value[key])
        else:
            setattr(injection if name.startswith("Radio") else header, name, value)
    header.RadiopharmaceuticalInformationSequence = [injection]
    return header


SERIES = {
    "PHILIPS_BQML": {"time_rules_differ"},
    "PHILIPS_CNTS_AND_BQML_SUV": set(),
    "PHILIPS_CNTS_AND_SUV": set(),
    "SIEMENS": set(),
    "GE_MEDICAL_AND_BQML": set(),
    "BQML_AC_DT_lessThan_S_DT_SIEMENS": set(),
    "CPS_AND_BQML_AC_DT_-_S_DT": {"series_time_late"},
    "RADIOPHARM_DATETIME_UNDEFINED": set(),
}


@pytest.mark.parametrize("name", SERIES)
def test_real_series_give_the_published_factor(shared, name):
    folder = shared / "data" / "suv_headers"
    expected = json.loads((folder / "expected_suvbw_factors.json").read_text())
    assert set(expected) == set(SERIES)
    headers = [header_from(one) for one in json.loads((folder / f"{name}-instances.json").read_text())]
    found = suv_factors(headers)
    assert found.factors == pytest.approx([expected[name]] * 3, rel=1e-5)
    assert {flag.code for flag in found.flags} == SERIES[name]


# --- reference objects: one a case, SUV 0.2 in a cold cube, 4.0 in a hot one, 1.0 elsewhere (after the list of the
# --- digital reference objects in the manual of Vácha et al.); what is stored is computed here from SUV

WEIGHT_KG, HEIGHT_CM, DOSE_BQ, HALF_LIFE_S, HOUR = 70.0, 175.0, 368.08e6, 6586.2, 3600.0
DECAY_TO_SCAN = 2 ** (-HOUR / HALF_LIFE_S)  # injection at 10:00, scan at 11:00
SUV_SHAPE = (12, 10, 8)
COMMON = {
    "PatientWeight": WEIGHT_KG,
    "PatientSize": HEIGHT_CM / 100,
    "RadionuclideTotalDose": DOSE_BQ,
    "RadionuclideHalfLife": HALF_LIFE_S,
    "RadiopharmaceuticalStartTime": "100000",
    "SeriesTime": "110000",
    "AcquisitionTime": "110000",
}


def true_suv():
    suv = np.ones(SUV_SHAPE)
    suv[2:4, 2:4, 2:4], suv[7:9, 6:8, 4:7] = 0.2, 4.0
    return suv


def activity(decay=DECAY_TO_SCAN, dose=DOSE_BQ):
    """Bq/ml: SUV x decayed dose / weight in g."""
    return true_suv() * dose * decay / (1000 * WEIGHT_KG)


def frame_time(k):
    return 660 * (k // 4)  # s after 11:00: two beds, eleven minutes apart


def philips(**factors):
    """Private elements of a Philips scanner, for a header."""
    names = {"suv": 0x00, "activity": 0x09}
    return {(0x7053, names[name], "Philips PET Private Group"): value for name, value in factors.items()}


WEIGHT_TO_AREA = 1e4 * 0.007184 * WEIGHT_KG**0.425 * HEIGHT_CM**0.725 / (1000 * WEIGHT_KG)
NOT_CORRECTED = np.stack(
    [
        # The frame's mean activity, from the integral of its decay over 300 s.
        true_suv()[..., k]
        * DOSE_BQ
        * 2 ** (-(HOUR + frame_time(k)) / HALF_LIFE_S)
        * (1 - 2 ** (-300 / HALF_LIFE_S))
        / (300 * math.log(2) / HALF_LIFE_S)
        / (1000 * WEIGHT_KG)
        for k in range(SUV_SHAPE[2])
    ],
    axis=-1,
)

CASES = {
    "baseline": (activity(), {}, {}),
    "GML": (true_suv(), {"Units": "GML"}, {}),
    "GML of lean mass, James 128, man": (
        true_suv() * (1.10 * 70 - 128 * (70 / 175) ** 2) / 70,
        {"Units": "GML", "SUVType": "LBMJAMES128", "PatientSex": "M"},
        {},
    ),
    "GML of lean mass, Janmahasatian, woman": (
        true_suv() * 9270 / (8780 + 244 * 70 / 1.75**2),
        {"Units": "GML", "SUVType": "LBMJANMA", "PatientSex": "F"},
        {},
    ),
    "GML of ideal mass, sex O": (
        true_suv() * ((48 + 1.06 * 23) + (45.5 + 0.91 * 23)) / 2 / 70,
        {"Units": "GML", "SUVType": "IBW", "PatientSex": "O"},
        {},
    ),
    "CM2ML": (true_suv() * WEIGHT_TO_AREA, {"Units": "CM2ML", "SUVType": "BSA"}, {}),
    "counts with SUV factor": (true_suv() / 5.5e-4, {"Units": "CNTS"}, philips(suv="0.00055", activity="99")),
    "counts with activity factor": (activity() / 1.6, {"Units": "CNTS"}, philips(activity="1.6")),
    "dose in MBq": (activity(), {"RadionuclideTotalDose": 368.08}, {}),
    "decay-corrected to the injection": (activity(decay=1.0), {"DecayCorrection": "ADMIN"}, {}),
    "series time after the acquisition": (
        activity(),
        {
            "SeriesTime": "113000",
            "AcquisitionTime": "110230",
            "ActualFrameDuration": 603000,
            "FrameReferenceTime": 1000 * (150 + mean_count_time_s(math.log(2) / HALF_LIFE_S, 603)),
        },
        {},
    ),
    "scan time of a GE scanner": (
        activity(),
        {"SeriesTime": "114500", "AcquisitionTime": "113000"},
        {(0x0009, 0x0D, "GEMS_PETD_01"): "20200102110000.00"},
    ),
    "no decay correction, two beds": (
        NOT_CORRECTED,
        {
            "DecayCorrection": "NONE",
            "ActualFrameDuration": 300000,
            "AcquisitionTime": lambda k: "111100" if frame_time(k) else "110000",
        },
        {},
    ),
    "date-time of the injection only": (
        activity(),
        {"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20200102100000.00"},
        {},
    ),
    "date of the injection was shifted": (activity(), {"RadiopharmaceuticalStartDateTime": "19990517100000"}, {}),
    "injection before midnight": (
        activity(),
        {"RadiopharmaceuticalStartTime": "233000", "SeriesTime": "003000", "AcquisitionTime": "003000"},
        {},
    ),
    "gallium-68": (
        activity(decay=2 ** (-HOUR / 4062.6)),
        {"RadionuclideHalfLife": None, "RadionuclideCodeSequence": [dicom_builder._item(CodeMeaning="^68^Gallium")]},
        {},
    ),
    "weight in g": (activity(), {"PatientWeight": 70000}, {}),
    "dates apart from the series": (activity(), {"AcquisitionDate": "20110101"}, {}),
    "counts per second, calibrated": (
        activity() * (4.0 * 4.0 * 3.0 / 1000),
        {"Units": "CPS", "CorrectedImage": ["ATTN", "DCAL"]},
        {},
    ),
}
FLAGS = {
    "dose in MBq": "dose_in_mbq",
    "series time after the acquisition": "series_time_late",
    "scan time of a GE scanner": "series_time_late",
    "date of the injection was shifted": "injection_date",
    "injection before midnight": "injection_before_midnight",
    "gallium-68": "half_life_of_nuclide",
    "weight in g": "weight_in_g",
    "counts per second, calibrated": "counts_per_second",
}


def write_case(folder, name):
    values, tags, private = CASES[name]
    sequence = tags.get("RadionuclideCodeSequence")
    tags = {key: value for key, value in {**COMMON, **tags}.items() if key != "RadionuclideCodeSequence"}
    paths = dicom_builder.series(folder, values=values, size=SUV_SHAPE, **tags)
    for path in paths:
        dataset = dicom_builder.pydicom.dcmread(path)
        if sequence:
            dataset.RadiopharmaceuticalInformationSequence[0].RadionuclideCodeSequence = sequence
        for (group, element, creator), value in private.items():
            block = dataset.private_block(group, creator, create=True)
            block.add_new(element, "DT" if group == 0x0009 else "DS", value)
        dataset.save_as(path)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_reference_object_has_suv_0_2_1_and_4(tmp_path, name):
    found = read_pet(pet_series(write_case(tmp_path, name)))
    # 16 bits store a slice to 4 / 65534; the tags hold factors to six digits and more.
    np.testing.assert_allclose(to_array(found.image), true_suv(), atol=2e-4)
    codes = {flag.code for flag in found.flags}
    assert codes - {"time_rules_differ"} == ({FLAGS[name]} if name in FLAGS else set())


def test_the_contract_gives_the_image_alone(tmp_path):
    np.testing.assert_allclose(to_array(read_pet_suv(write_case(tmp_path, "baseline"))), true_suv(), atol=2e-4)


# --- what is refused


REFUSED = {
    "no_weight": {"PatientWeight": None},
    "no_weight ": {"PatientWeight": 0},
    "impossible_weight": {"PatientWeight": 700},
    "no_dose": {"RadionuclideTotalDose": None},
    "impossible_dose": {"RadionuclideTotalDose": 20000.0},
    "no_injection_time": {"RadiopharmaceuticalStartTime": None},
    "uptake_time": {"RadiopharmaceuticalStartTime": "110100"},  # after the scan, so 24 hours before
    "no_half_life": {"RadionuclideHalfLife": None},
    "decay_correction": {"DecayCorrection": None},
    "not_attenuation_corrected": {"CorrectedImage": ["DECY", "NORM"]},
    "units": {"Units": "PROPCPS"},
    "units ": {"Units": "1CM"},
    "counts_without_factor": {"Units": "CNTS"},
    "counts_not_calibrated": {"Units": "CPS", "CorrectedImage": ["ATTN"]},
    "suv_type": {"Units": "GML", "SUVType": "XYZ"},
    "no_height": {"Units": "CM2ML", "PatientSize": None},
    "no_sex": {"Units": "GML", "SUVType": "IBW", "PatientSex": None},
    "no_frame_times": {"DecayCorrection": "NONE", "ActualFrameDuration": None},
    "no_scan_time": {"SeriesTime": None, "AcquisitionTime": None},
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_is_missing_or_impossible_is_refused_with_its_code(tmp_path, code):
    paths = dicom_builder.series(tmp_path, **{**COMMON, **REFUSED[code]})
    with pytest.raises(Refusal) as error:
        suv_factors(dicom_builder.headers(paths))
    assert error.value.code == code.strip()
    assert str(error.value)


FROM_TABLE = {
    "weight_from_table": ({"PatientWeight": None}, Clinical(weight_kg=WEIGHT_KG)),
    "dose_from_table": ({"RadionuclideTotalDose": 0}, Clinical(dose_mbq=DOSE_BQ / 1e6)),
    "injection_time_from_table": ({"RadiopharmaceuticalStartTime": None}, Clinical(injection_time="10:00")),
}


@pytest.mark.parametrize("code", FROM_TABLE)
def test_the_clinical_table_fills_what_the_header_lacks_and_is_flagged(tmp_path, code):
    tags, clinical = FROM_TABLE[code]
    found = suv_factors(dicom_builder.headers(dicom_builder.series(tmp_path, **{**COMMON, **tags})), clinical)
    assert found.factors[0] == pytest.approx(1000 * WEIGHT_KG / (DOSE_BQ * DECAY_TO_SCAN), rel=1e-9)
    assert [flag.code for flag in found.flags] == [code]


def test_the_table_does_not_overrule_a_sound_header(tmp_path):
    headers = dicom_builder.headers(dicom_builder.series(tmp_path, **COMMON))
    assert suv_factors(headers, Clinical(weight_kg=90.0)) == suv_factors(headers)


def test_two_rules_for_the_time_that_differ_by_more_than_a_per_cent_are_flagged(tmp_path):
    """95 s of fluorine-18 are 1.0 % of SUV."""
    for seconds, flagged in ((90, False), (100, True)):
        reference_ms = 1000 * (mean_count_time_s(math.log(2) / HALF_LIFE_S, 180) + seconds)
        paths = dicom_builder.series(tmp_path / str(seconds), **{**COMMON, "FrameReferenceTime": reference_ms})
        codes = [flag.code for flag in suv_factors(dicom_builder.headers(paths)).flags]
        assert codes == (["time_rules_differ"] if flagged else [])


@pytest.mark.parametrize(("injected", "flagged"), [("102500", False), ("075500", True), ("103500", True)])
def test_an_unusual_uptake_time_is_flagged(tmp_path, injected, flagged):
    paths = dicom_builder.series(tmp_path, **{**COMMON, "RadiopharmaceuticalStartTime": injected})
    codes = [flag.code for flag in suv_factors(dicom_builder.headers(paths)).flags]
    assert codes == (["uptake_time"] if flagged else [])


def test_blank_corrections_are_flagged_not_refused(tmp_path):
    paths = dicom_builder.series(tmp_path, **{**COMMON, "CorrectedImage": None})
    assert [flag.code for flag in suv_factors(dicom_builder.headers(paths)).flags] == ["corrections_not_stated"]


@pytest.mark.parametrize(("scale", "code"), [(1e3, "implausible_suv"), (1e-3, "implausible_suv")])
def test_a_scale_that_cannot_be_suv_is_refused(tmp_path, scale, code):
    dicom_builder.series(tmp_path, values=true_suv() * scale, size=SUV_SHAPE, Units="GML")
    with pytest.raises(Refusal) as error:
        read_pet_suv(tmp_path)
    assert error.value.code == code


def one_hot_voxel():
    suv = true_suv()
    suv[7, 6, 4] = 150.0
    return suv


@pytest.mark.parametrize(("values", "code"), [(true_suv() * 5, "body_suv"), (one_hot_voxel(), "high_suv")])
def test_an_unlikely_scale_is_flagged(tmp_path, values, code):
    dicom_builder.series(tmp_path, values=values, size=SUV_SHAPE, Units="GML")
    assert code in [flag.code for flag in read_pet(pet_series(tmp_path)).flags]


# --- the formulas


def test_mean_count_time_is_half_the_frame_when_decay_is_slow():
    """T / 2 - lambda T^2 / 24 to second order."""
    decay = math.log(2) / HALF_LIFE_S
    assert mean_count_time_s(decay, 180) == pytest.approx(90 - decay * 180**2 / 24, abs=1e-4)


def test_du_bois():
    """70 kg and 170 cm: 1.81 m2 in every table of Du Bois' formula."""
    assert body_surface_m2(70, 170) == pytest.approx(1.81, abs=0.005)
