"""From a PET series' headers to SUV of body weight: the factor of each slice, the rule it follows, and what is odd.

SUV = voxel value x factor, the voxel value after RescaleSlope and RescaleIntercept; body weight in g, so SUV is g/ml.
Rules: QIBA's vendor-neutral pseudo-code for SUV ("QIBA"), and the manual of Vácha, Hofheinz et al. 2026, "Comprehensive
Manual for SUV Computation" ("Manual", CC BY 4.0), with whose reference objects they were checked. What a header lacks
or has wrong is never guessed: it is refused with a reason code, or taken from the user's clinical table and flagged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from pydicom import Dataset

from mtvlib.errors import Refusal

DAY_S = 86400.0
TIME_RULES_TOLERANCE = 0.01  # of SUV: more than that between two rules for the time of reference is flagged
LATE_S = 1.0  # series and acquisition times that are the same but for rounding
MOST_HALF_LIVES = 8.0  # between injection and scan; more is a mistake of the clock or of the day
UPTAKE_MIN = (30.0, 180.0)  # of FDG, minutes; outside it is flagged
WEIGHT_KG = (1.0, 400.0)
DOSE_BQ = (1e6, 1e10)
MBQ_BELOW = 1e4  # doses below are in MBq (Manual: peaks at 4e2 and 4e8)

# Half-lives in s by nuclide, for a header without one: ^18^Fluorine, ^68^Gallium and so on, by code or by name.
HALF_LIVES_S = {
    "F18": 6586.2,
    "GA68": 4062.6,
    "C11": 1221.8,
    "N13": 597.9,
    "O15": 122.2,
    "CU64": 45723.6,
    "ZR89": 282276,
}


@dataclass(frozen=True)
class Flag:
    """Something that a person should know about an accepted image; `code` can be counted."""

    code: str
    message: str


@dataclass(frozen=True)
class Clinical:
    """What the user's own table says about a patient, in place of what the header lacks; None: unknown."""

    weight_kg: float | None = None
    height_cm: float | None = None
    sex: str | None = None  # M, F or O
    dose_mbq: float | None = None
    injection_time: str | None = None  # of day, HH:MM or HH:MM:SS


@dataclass(frozen=True)
class Suv:
    """`factors` of the slices in the order of the headers, the rule in words, uptake in minutes (None: not needed)."""

    factors: tuple[float, ...]
    rule: str
    flags: tuple[Flag, ...] = ()
    uptake_min: float | None = None


def suv_factors(headers: Sequence[Dataset], clinical: Clinical | None = None) -> Suv:
    """Factors from voxel values (after slope and intercept) to SUV of body weight, one a slice.

    `headers`: the series' slices, enhanced ones flattened (`dicom.read_headers`). Units BQML, CNTS (Philips), CPS, GML
    and CM2ML. Raises `Refusal` with a code such as `units`, `no_weight`, `no_dose`, `no_injection_time`, `uptake_time`,
    `not_attenuation_corrected`, `decay_correction`.
    """
    series = _Series(list(headers), clinical or Clinical())
    _check_corrections(series)
    units = _text(series.first, "Units").upper()
    if units not in _UNITS:
        raise Refusal(
            "units",
            "the PET's units cannot be turned into SUV",
            value=units or "none",
            remedy=f"export the series in one of {', '.join(_UNITS)}; PROPCPS, PROPCNTS and 1CM are not quantitative.",
        )
    factors, rule, uptake_min = _UNITS[units](series)
    wrong = next((factor for factor in factors if not (math.isfinite(factor) and factor > 0)), None)
    if wrong is not None:
        raise Refusal("factor", "the SUV factor is no positive number", value=wrong, remedy="check the header.")
    return Suv(tuple(factors), rule, tuple(series.flags), uptake_min)


@dataclass
class _Series:
    """The headers, the user's table, and the flags that gather while the factor is found."""

    headers: list[Dataset]
    clinical: Clinical
    flags: list[Flag] = field(default_factory=list)

    @property
    def first(self) -> Dataset:
        return self.headers[0]

    def flag(self, code: str, message: str) -> None:
        if code not in {flag.code for flag in self.flags}:
            self.flags.append(Flag(code, message))


_Found = tuple[list[float], str, float | None]


# --- the header's values, which are often typed by hand


def _text(header: Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()


def number(header: Dataset, name: str) -> float | None:
    """A finite number of a header; None where it is absent, empty or no number."""
    return _as_number(header.get(name))


def _as_number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def private_number(header: Dataset, group: int, creators: Sequence[str], element: int) -> float | None:
    """A number of a private block, or of its usual place where the creator's element was removed."""
    value = private_value(header, group, creators, element)
    return _as_number(value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else value)


def private_value(header: Dataset, group: int, creators: Sequence[str], element: int) -> Any:
    for creator in creators:
        try:
            return header.private_block(group, creator)[element].value
        except KeyError:
            continue
    place = (group, 0x1000 + element)
    return header[place].value if place in header else None


def _check_corrections(series: _Series) -> None:
    """Attenuation correction, where the header says what was corrected: all series of one public site do not."""
    stated = series.first.get("CorrectedImage")
    found = {str(one).upper() for one in ([stated] if isinstance(stated, str) else stated or [])} - {""}
    if not found:
        series.flag("corrections_not_stated", "the header does not say whether attenuation was corrected")
    elif "ATTN" not in found:
        raise Refusal(
            "not_attenuation_corrected",
            "the PET is not corrected for attenuation",
            value=", ".join(sorted(found)),
            remedy="export the corrected series.",
        )


# --- the patient


def _weight_g(series: _Series) -> float:
    stated = number(series.first, "PatientWeight")
    if stated is not None and stated > 1000:
        series.flag("weight_in_g", f"the weight, {stated:g}, was taken as g")
        stated /= 1000
    kg = _own_or_table(series, stated, series.clinical.weight_kg, WEIGHT_KG, "weight", "kg")
    return kg * 1000


def _height_cm(series: _Series) -> float:
    stated = number(series.first, "PatientSize")
    if stated is not None and stated > 3:
        series.flag("height_in_cm", f"the height, {stated:g}, was taken as cm")
        stated /= 100
    cm = None if stated is None else stated * 100
    return _own_or_table(series, cm, series.clinical.height_cm, (30.0, 250.0), "height", "cm")


def _sex(series: _Series) -> str:
    stated = _text(series.first, "PatientSex").upper()[:1]
    if stated in ("M", "F", "O"):
        return stated
    table = (series.clinical.sex or "").strip().upper()[:1]
    if table in ("M", "F", "O"):
        series.flag("sex_from_table", "the sex was taken from the clinical table")
        return table
    raise Refusal(
        "no_sex",
        "SUV of lean or ideal body weight needs the patient's sex",
        value=stated or "none",
        remedy="add `sex` to the clinical table.",
    )


def _dose_bq(series: _Series) -> float:
    stated = number(_injection(series), "RadionuclideTotalDose")
    if stated is not None and 0 < stated < MBQ_BELOW:
        series.flag("dose_in_mbq", f"the injected activity, {stated:g}, was taken as MBq")
        stated *= 1e6
    table = None if series.clinical.dose_mbq is None else series.clinical.dose_mbq * 1e6
    return _own_or_table(series, stated, table, DOSE_BQ, "dose", "Bq")


def _own_or_table(
    series: _Series, stated: float | None, table: float | None, limits: tuple[float, float], what: str, unit: str
) -> float:
    """The header's value, or the table's where the header has none or an impossible one."""
    low, high = limits
    if stated is not None and low <= stated <= high:
        return stated
    if table is not None and low <= table <= high:
        series.flag(f"{what}_from_table", f"the {what} was taken from the clinical table")
        return table
    column = {"weight": "weight_kg", "height": "height_cm", "dose": "dose_mbq"}[what]
    missing = not stated
    raise Refusal(
        f"no_{what}" if missing else f"impossible_{what}",
        f"the header has no {what}" if missing else f"the {what} in the header is impossible",
        value=None if missing else f"{stated:g} {unit}",
        remedy=f"add `{column}` to the clinical table (--table).",
    )


def _injection(series: _Series) -> Dataset:
    items = series.first.get("RadiopharmaceuticalInformationSequence") or []
    if len(items) > 1:
        series.flag("several_injections", f"the header tells of {len(items)} injections; the first one was used")
    return items[0] if items else Dataset()


def _decay_per_s(series: _Series) -> float:
    """The nuclide's decay constant, 1/s."""
    stated, known = number(_injection(series), "RadionuclideHalfLife"), _known_half_life_s(_injection(series))
    if stated and stated > 0:
        if known and abs(stated / known - 1) > 0.01:
            series.flag("half_life", f"the half-life in the header, {stated:g} s, is not the nuclide's, {known:g} s")
        return math.log(2) / stated
    if known:
        series.flag("half_life_of_nuclide", f"the header has no half-life; that of the nuclide, {known:g} s, was used")
        return math.log(2) / known
    raise Refusal("no_half_life", "neither half-life nor nuclide are known", remedy="export the series again.")


def _known_half_life_s(injection: Dataset) -> float | None:
    codes = injection.get("RadionuclideCodeSequence") or [Dataset()]
    name = re.sub(r"[^A-Z0-9]", "", _text(codes[0], "CodeMeaning").upper())
    for nuclide, seconds in HALF_LIVES_S.items():
        element, mass = re.fullmatch(r"([A-Z]+)(\d+)", nuclide).groups()  # type: ignore[union-attr]
        if name in (nuclide, mass + element) or (name.startswith(mass) and name[len(mass) :] == _ELEMENTS[element]):
            return seconds
    return None


_ELEMENTS = {
    "F": "FLUORINE",
    "GA": "GALLIUM",
    "C": "CARBON",
    "N": "NITROGEN",
    "O": "OXYGEN",
    "CU": "COPPER",
    "ZR": "ZIRCONIUM",
}


# --- moments, in seconds of a calendar without time zones


def _day(text: str) -> float | None:
    """Start of a day from a DICOM date (YYYYMMDD, YYYY.MM.DD)."""
    digits = re.sub(r"\D", "", text)[:8]
    try:
        return DAY_S * date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).toordinal()
    except ValueError:  # empty, or no day of the calendar
        return None


def _clock(text: str) -> float | None:
    """Seconds since midnight from a DICOM time (HHMMSS.FFFFFF; colons allowed)."""
    match = re.fullmatch(r"(\d{2}):?(\d{2})?:?(\d{2}(?:\.\d+)?)?", text.strip())
    if not match:
        return None
    hours, minutes, seconds = (float(part) if part else 0.0 for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds if hours < 24 and minutes < 60 and seconds < 61 else None


def _moment(text: str) -> float | None:
    """A DICOM date-time (YYYYMMDDHHMMSS.FFFFFF, an offset to UTC is local to all of the header and left out)."""
    text = re.split(r"[+&-]\d{4}$", text.strip())[0]
    day, clock = _day(text[:8]), _clock(text[8:])
    return None if day is None or clock is None else day + clock


def _nearest_day(clock: float, moment: float) -> float:
    """The time of day on the day that brings it nearest to a moment."""
    return clock + DAY_S * round((moment - clock) / DAY_S)


def _series_moment(header: Dataset) -> float | None:
    clock = _clock(_text(header, "SeriesTime"))
    days = (_day(_text(header, name)) for name in ("SeriesDate", "AcquisitionDate", "StudyDate", "ContentDate"))
    return None if clock is None else next((day for day in days if day is not None), 0.0) + clock


def _acquisition_moment(header: Dataset, series_moment: float | None) -> float | None:
    """Start of the slice's frame. Its date counts only if it fits the series: dates are shifted, times are not."""
    whole = _moment(_text(header, "AcquisitionDateTime"))
    clock, day = _clock(_text(header, "AcquisitionTime")), _day(_text(header, "AcquisitionDate"))
    if clock is None and whole is not None:
        clock, day = whole % DAY_S, whole - whole % DAY_S
    if clock is None:
        return None
    if series_moment is not None and (day is None or abs(day + clock - series_moment) > DAY_S):
        return _nearest_day(clock, series_moment)
    return (day or 0.0) + clock


def mean_count_time_s(decay_per_s: float, duration_s: float) -> float:
    """Seconds from the start of a frame until the activity equals its mean over the frame (Manual, "Option A")."""
    decay = decay_per_s * duration_s
    return math.log(decay / -math.expm1(-decay)) / decay_per_s if decay > 0 else 0.0


@dataclass(frozen=True)
class _Frame:
    start: float | None  # moment
    duration_s: float | None
    reference_s: float | None  # FrameReferenceTime: from the time of reference to the mean of the frame


def _frames(series: _Series) -> list[_Frame]:
    moment = _series_moment(series.first)
    return [
        _Frame(
            _acquisition_moment(header, moment),
            *(None if ms is None else ms / 1000 for ms in _durations_ms(header)),
        )
        for header in series.headers
    ]


def _durations_ms(header: Dataset) -> tuple[float | None, float | None]:
    return number(header, "ActualFrameDuration"), number(header, "FrameReferenceTime")


def _back_computed(frames: Sequence[_Frame], decay_per_s: float) -> float | None:
    """Time of reference from the frames: start + mean count time - FrameReferenceTime; None where these are not known.

    A FrameReferenceTime of 0 is the frame's start, not its mean: then nothing can be told (QIBA uses it above 0 only).
    """
    found = [
        frame.start + mean_count_time_s(decay_per_s, frame.duration_s) - frame.reference_s
        for frame in frames
        if frame.start is not None and frame.duration_s and frame.reference_s
    ]
    return sum(found) / len(found) if found else None


def _reference_moment(series: _Series, decay_per_s: float) -> tuple[float, str]:
    """When the voxel values of a series with decay correction START are true, and by which rule (QIBA's order)."""
    frames, series_moment = _frames(series), _series_moment(series.first)
    earliest = min((frame.start for frame in frames if frame.start is not None), default=None)
    scanner = _moment(str(private_value(series.first, 0x0009, ("GEMS_PETD_01",), 0x0D) or ""))
    back = _back_computed(frames, decay_per_s)
    in_time = series_moment is not None and (earliest is None or series_moment <= earliest + LATE_S)
    rules = {
        "series time": series_moment if in_time else None,
        "scan time of the GE scanner": scanner,
        "acquisition and frame reference time": back,
        "earliest acquisition time": earliest,
    }
    found = {rule: moment for rule, moment in rules.items() if moment is not None}
    if not found:
        raise Refusal(
            "no_scan_time", "neither series nor acquisition time are known", remedy="export the series again."
        )
    rule, moment = next(iter(found.items()))
    if not in_time and series_moment is not None:
        series.flag("series_time_late", f"the series time is later than the acquisition; {rule} was used instead")
    _cross_check(series, {name: found[name] for name in list(rules)[:3] if name in found}, moment, decay_per_s)
    return moment, rule


def _cross_check(series: _Series, rules: dict[str, float], moment: float, decay_per_s: float) -> None:
    for rule, other in rules.items():
        change = math.expm1(decay_per_s * abs(other - moment))
        if change > TIME_RULES_TOLERANCE:
            series.flag("time_rules_differ", f"by the {rule}, SUV would be {change:.1%} away from the value used")


def _injection_moment(series: _Series, reference: float, longest_s: float) -> float:
    """When the tracer was injected; at most `longest_s` before the moment of reference, else a `Refusal`."""
    injection = _injection(series)
    whole = _moment(_text(injection, "RadiopharmaceuticalStartDateTime"))
    clock = _clock(_text(injection, "RadiopharmaceuticalStartTime"))
    if whole is not None and 0 < reference - whole <= longest_s:
        return whole
    if whole is not None:
        series.flag("injection_date", "the date of injection does not fit the scan; its time of day alone was used")
        clock = whole % DAY_S if clock is None else clock
    if clock is None:
        clock = _clock(series.clinical.injection_time or "")
        if clock is None:
            raise Refusal(
                "no_injection_time",
                "the header has no time of injection",
                remedy="add `injection_time` (HH:MM) to the clinical table (--table).",
            )
        series.flag("injection_time_from_table", "the time of injection was taken from the clinical table")
    moment = _latest_before(clock, reference)
    if reference // DAY_S != moment // DAY_S:
        series.flag("injection_before_midnight", "the injection was taken as of the day before the scan")
    return moment


def _latest_before(clock: float, moment: float) -> float:
    found = moment // DAY_S * DAY_S + clock
    return found - DAY_S if found > moment else found


# --- the units


def _becquerels(series: _Series) -> _Found:
    """BQML: weight / dose, the dose decayed to the moment at which the voxel values are true."""
    weight_g, dose_bq, decay = _weight_g(series), _dose_bq(series), _decay_per_s(series)
    correction = _text(series.first, "DecayCorrection").upper()
    if correction == "ADMIN":
        return [weight_g / dose_bq] * len(series.headers), "BQML, decay-corrected to the injection", None
    if correction == "START":
        reference, rule = _reference_moment(series, decay)
        elapsed = reference - _injection_moment(series, reference, MOST_HALF_LIVES * math.log(2) / decay)
        moments, rule = [elapsed] * len(series.headers), f"BQML, decay-corrected to the start: {rule}"
    elif correction == "NONE":
        moments, rule = _without_decay_correction(series, decay), "BQML, not decay-corrected: time of each frame"
    else:
        raise Refusal(
            "decay_correction",
            "the header does not say to which moment decay was corrected",
            value=correction or "none",
            remedy="export the series again with DecayCorrection (START, ADMIN or NONE).",
        )
    uptake_min = min(moments) / 60
    _check_uptake(series, uptake_min, decay)
    return [weight_g / (dose_bq * math.exp(-decay * elapsed)) for elapsed in moments], rule, uptake_min


def _without_decay_correction(series: _Series, decay_per_s: float) -> list[float]:
    """Seconds from injection to the mean of each slice's frame."""
    frames = _frames(series)
    if any(frame.start is None or not frame.duration_s for frame in frames):
        raise Refusal(
            "no_frame_times",
            "without decay correction each slice needs its acquisition time and frame duration",
            remedy="export the series again with them.",
        )
    means = [frame.start + mean_count_time_s(decay_per_s, frame.duration_s) for frame in frames]  # type: ignore[operator,arg-type]
    injected = _injection_moment(series, min(means), MOST_HALF_LIVES * math.log(2) / decay_per_s)
    return [mean - injected for mean in means]


def _check_uptake(series: _Series, uptake_min: float, decay_per_s: float) -> None:
    half_lives = uptake_min * 60 * decay_per_s / math.log(2)
    if not 0 < half_lives <= MOST_HALF_LIVES:
        raise Refusal(
            "uptake_time",
            "the time from injection to scan is impossible",
            value=f"{uptake_min:.0f} min",
            remedy="correct the time of injection, or give `injection_time` in the clinical table.",
        )
    if not UPTAKE_MIN[0] <= uptake_min <= UPTAKE_MIN[1]:
        series.flag("uptake_time", f"{uptake_min:.0f} min from injection to scan; usual are 30 to 180")


_PHILIPS = ("Philips PET Private Group", "PHILIPS PET PRIVATE GROUP")


def _counts(series: _Series) -> _Found:
    """CNTS of Philips: by the SUV factor (7053,1000), or by the activity factor (7053,1009) to BQML."""
    suv = [private_number(header, 0x7053, _PHILIPS, 0x00) for header in series.headers]
    if all(suv):
        return [float(one) for one in suv if one], "CNTS, the scanner's SUV factor (7053,1000)", None
    activity = [private_number(header, 0x7053, _PHILIPS, 0x09) for header in series.headers]
    if not all(activity):
        raise Refusal(
            "counts_without_factor",
            "the PET is in counts, and the scanner's factors (7053,1000) and (7053,1009) are both absent",
            remedy="export the series again with its private tags, or in BQML.",
        )
    factors, rule, uptake_min = _becquerels(series)
    by_activity = [one * own for one, own in zip(factors, activity, strict=True) if own]
    return by_activity, rule.replace("BQML", "CNTS, the scanner's activity factor (7053,1009)"), uptake_min


def _counts_per_second(series: _Series) -> _Found:
    """CPS that is dose-calibrated: divided by the voxel's volume in ml it is Bq/ml (Manual, Units = CPS)."""
    if "DCAL" not in str(series.first.get("CorrectedImage") or "").upper():
        raise Refusal(
            "counts_not_calibrated", "the PET is in counts per second and not calibrated", remedy="export it in BQML."
        )
    spacing, thickness = series.first.get("PixelSpacing"), number(series.first, "SliceThickness")
    if not spacing or not thickness:
        raise Refusal("no_voxel_size", "counts per second need the size of a voxel", remedy="export it in BQML.")
    voxel_ml = float(spacing[0]) * float(spacing[1]) * thickness / 1000
    factors, rule, uptake_min = _becquerels(series)
    series.flag("counts_per_second", "counts per second were divided by the voxel's volume")
    return [factor / voxel_ml for factor in factors], rule.replace("BQML", "CPS, calibrated"), uptake_min


def _grams(series: _Series) -> _Found:
    """GML is SUV already: of body weight unless SUVType says otherwise (Manual, Units = GML)."""
    kind = _text(series.first, "SUVType").upper() or "BW"
    if kind == "BW":
        return [1.0] * len(series.headers), "GML, SUV of body weight", None
    if kind not in MASSES_KG:
        raise Refusal("suv_type", "this type of SUV is not known", value=kind, remedy="export the series in BQML.")
    weight_kg, height_cm = _weight_g(series) / 1000, _height_cm(series)
    mass_kg = by_sex(MASSES_KG[kind], weight_kg, height_cm, _sex(series))
    return [weight_kg / mass_kg] * len(series.headers), f"GML, SUV of {kind} turned into body weight", None


def _square_centimetres(series: _Series) -> _Found:
    """CM2ML: SUV of body surface area in cm2 (Du Bois)."""
    weight_g = _weight_g(series)
    area_cm2 = 1e4 * body_surface_m2(weight_g / 1000, _height_cm(series))
    return [weight_g / area_cm2] * len(series.headers), "CM2ML, SUV of body surface area turned into body weight", None


_UNITS: dict[str, Callable[[_Series], _Found]] = {
    "BQML": _becquerels,
    "CNTS": _counts,
    "CPS": _counts_per_second,
    "GML": _grams,
    "CM2ML": _square_centimetres,
}


def body_surface_m2(weight_kg: float, height_cm: float) -> float:
    """Du Bois and Du Bois 1916."""
    return 0.007184 * weight_kg**0.425 * height_cm**0.725


# Mass in kg by SUVType, from weight in kg and height in cm: (of men, of women).
Mass = Callable[[float, float], float]
MASSES_KG: dict[str, tuple[Mass, Mass]] = {
    "LBM": (lambda w, h: 1.10 * w - 120 * (w / h) ** 2, lambda w, h: 1.07 * w - 148 * (w / h) ** 2),
    "LBMJAMES128": (lambda w, h: 1.10 * w - 128 * (w / h) ** 2, lambda w, h: 1.07 * w - 148 * (w / h) ** 2),
    "LBMJANMA": (
        lambda w, h: 9270 * w / (6680 + 216 * w / (h / 100) ** 2),
        lambda w, h: 9270 * w / (8780 + 244 * w / (h / 100) ** 2),
    ),
    "IBW": (lambda w, h: 48.0 + 1.06 * (h - 152), lambda w, h: 45.5 + 0.91 * (h - 152)),
}


def by_sex(masses: tuple[Mass, Mass], weight_kg: float, height_cm: float, sex: str) -> float:
    """Mass in kg; for the sex O the mean of both formulas, as the Manual proposes."""
    man, woman = (mass(weight_kg, height_cm) for mass in masses)
    return {"M": man, "F": woman}.get(sex, (man + woman) / 2)
