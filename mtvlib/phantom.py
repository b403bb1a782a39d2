"""Synthetic head-and-neck FDG PET/CT patients with known truth and outcome, for tests, demonstrations and teaching.

A patient is a normal body (`mtvlib.anatomy`) with a primary tumour on the mucosa, lymph node metastases and harmless
inflamed nodes, seen through the scanner of its site. Results on phantoms verify software; they say nothing clinical.

What follows which source ("Paper": Nikulin et al. 2023, Methods and Results):

- Shares of the sites, subsites of the primary, share of visible primaries, number of nodes, median and mean lesion
  volumes, sex, age, share of UICC IV, share of patients in the survival analysis: Paper. That volumes are lognormal
  (with Paper's median and mean) is an assumption. That holds for the lesions as drawn. The reference's ROIs differ, as
  thresholds and blur do: in 110 + 70 patients of seed 2023 their medians were 6.3 (main) and 6.0 ml (external) for
  primaries, 3.3 and 1.4 ml for nodes, since small nodes swell and neighbours merge.
- Nodal levels by subsite and the dominance of the primary's side: the known pattern of spread; the weights are
  assumptions. Inflamed nodes: 40 % of patients have one to three, SUV 2-4, an assumption.
- Uptake: SUVmax of primaries near 13, of nodes lower and overlapping, some below 4: assumption, guided by Paper, Fig. 3
  (22.0 and 7.4 in one patient; 4.0). Necrosis in part of the large lesions and texture: assumptions.
- Reference: adaptive threshold against the local background on the PET, T = 0.39 (R - Bg) + Bg (the method of Hofheinz
  2012 and 2013, which Paper used), then an observer's corrections at Paper's rate, 41 of 879 primaries and 716 of 1475
  nodes. What a correction does is an assumption.
- Scanners: voxel sizes as in public head and neck collections; resolution (4.5-7.5 mm), noise and a scatter of SUV of
  10 % are assumptions. Field: 22-40 cm, mean near Paper's 33 cm.
- Overall survival: a Cox model whose truth is `HAZARD_PER_DOUBLING`; see `_outcome`.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage

from mtvlib import anatomy
from mtvlib.anatomy import LEVELS, LOW_MM, MUCOSA, SPACING_MM, Body, Place, Point, blur, draw_body, smooth_noise
from mtvlib.classes import BACKGROUND, NODES, PRIMARY
from mtvlib.errors import InputError
from mtvlib.files import write_json, write_text
from mtvlib.volume import Grid, resample, to_array, to_image, write_image

VERSION = 1  # of the synthetic world: another version draws other patients
Cohort = Literal["main", "external"]
COHORTS: tuple[Cohort, Cohort] = ("main", "external")
PREFIX = {"main": "m", "external": "e"}
DENTAL_METAL = 0.3  # share of CTs with streaks; the worst were excluded in Paper
TEETH_MM = np.array([0.0, -70.0, 38.0])  # front teeth, canonical frame

# --- the truth of the outcome model (choices, tuned so that the dichotomised hazard ratio is near the Paper's 1.9)
HAZARD_PER_DOUBLING = 1.36  # hazard ratio for one more unit of log2(TTB + 1), TTB in ml
WEIBULL_SHAPE = 1.1
MEDIAN_MONTHS_AT_REFERENCE = 70.0  # median survival at REFERENCE_TTB_ML
REFERENCE_TTB_ML = 12.0


@dataclass(frozen=True)
class Site:
    name: str
    share: float
    pet_mm: Point
    pet_size: int
    ct_mm: Point
    ct_size: int
    fwhm_mm: float  # of the reconstructed PET
    noise: float  # standard deviation at SUV 1
    field_mm: float  # mean axial length
    ct_noise_hu: float = 14.0
    suv_bias: float = 1.0
    flip: Point = (1.0, 1.0, 1.0)  # direction of the axes of PET and reference


SITES: dict[str, tuple[Site, ...]] = {
    "main": (
        Site("site_a", 269 / 698, (3.52, 3.52, 3.27), 128, (1.95, 1.95, 3.27), 256, 6.3, 0.14, 330),
        Site("site_b", 175 / 698, (4.07, 4.07, 3.0), 128, (1.52, 1.52, 3.0), 256, 5.2, 0.15, 340),
        Site("site_c", 131 / 698, (3.39, 3.39, 3.0), 144, (1.95, 1.95, 3.0), 256, 5.0, 0.13, 350, 16),
        Site(
            "site_d", 34 / 698, (4.07, 4.07, 3.0), 128, (1.37, 1.37, 3.0), 288, 5.6, 0.17, 300, flip=(-1.0, -1.0, 1.0)
        ),
        Site("site_e", 32 / 698, (2.73, 2.73, 3.27), 176, (1.95, 1.95, 2.5), 256, 4.7, 0.17, 320, 18, 1.04),
        Site("site_f", 24 / 698, (2.04, 2.04, 2.03), 192, (1.52, 1.52, 2.0), 256, 4.5, 0.18, 260),
        Site("site_g", 22 / 698, (5.31, 5.31, 3.4), 96, (1.95, 1.95, 3.4), 256, 7.5, 0.12, 370, 12, 0.93),
        Site("site_h", 11 / 698, (4.0, 4.0, 4.0), 120, (1.95, 1.95, 4.0), 256, 6.8, 0.14, 300, flip=(1.0, 1.0, -1.0)),
    ),
    "external": (
        Site("site_x", 166 / 181, (4.07, 4.07, 3.0), 120, (1.52, 1.52, 3.0), 256, 5.0, 0.16, 330, 15, 1.03),
        Site("site_y", 15 / 181, (2.73, 2.73, 3.27), 176, (0.98, 0.98, 3.27), 384, 6.6, 0.13, 310, 12, 0.96),
    ),
}


SUBSITES: dict[str, dict[str, float]] = {
    "main": {"oropharynx": 0.63, "larynx": 0.17, "oral cavity": 0.06, "hypopharynx": 0.06, "nasopharynx": 0.06,
             "other": 0.02},
    "external": {"oropharynx": 0.41, "larynx": 0.17, "oral cavity": 0.19, "hypopharynx": 0.14, "nasopharynx": 0.06,
                 "other": 0.03},
}  # fmt: skip

SPREAD: dict[str, dict[str, float]] = {
    "oropharynx": {"I": 0.06, "II": 0.52, "III": 0.19, "IV": 0.06, "V": 0.06, "RP": 0.11},
    "larynx": {"II": 0.34, "III": 0.36, "IV": 0.15, "V": 0.03, "VI": 0.12},
    "oral cavity": {"I": 0.48, "II": 0.34, "III": 0.13, "IV": 0.05},
    "hypopharynx": {"II": 0.35, "III": 0.32, "IV": 0.13, "V": 0.04, "VI": 0.06, "RP": 0.10},
    "nasopharynx": {"II": 0.42, "III": 0.10, "IV": 0.05, "V": 0.15, "RP": 0.28},
    "other": {"I": 0.35, "II": 0.45, "III": 0.1, "RP": 0.1},
}
NODE_FREE = {
    "oropharynx": 0.2,
    "larynx": 0.5,
    "oral cavity": 0.42,
    "hypopharynx": 0.2,
    "nasopharynx": 0.12,
    "other": 0.5,
}


@dataclass(frozen=True)
class Burden:
    """How much disease a cohort has. Volumes in ml: median and mean (Paper)."""

    primary_ml: tuple[float, float]
    node_ml: tuple[float, float]
    nodes: float  # mean number in patients with nodes
    visible_primary: float


BURDEN = {
    "main": Burden((8.16, 13.21), (2.74, 5.45), 2.3, 643 / 698),
    "external": Burden((8.05, 15.62), (0.70, 4.30), 3.4, 175 / 181),
}
CORRECTED = {PRIMARY: 41 / 879, NODES: 716 / 1475}


@dataclass(frozen=True)
class World:
    """How hard patients are to delineate; the defaults are the usual world (assumptions, see the module's text)."""

    node_suv: float = 7.6  # median of a node of 2.7 ml
    lowest_node_suv: float = 3.2
    inflamed: float = 0.4  # share of patients with inflamed nodes
    most_inflamed: int = 3
    inflamed_suv: float = 3.8  # median
    largest_inflamed_ml: float = 0.8
    other_scanner: bool = False  # the external sites' scanners are unlike any of the main cohort's

    def site(self, cohort: Cohort, site: Site) -> Site:
        if cohort == "main" or not self.other_scanner:
            return site
        return replace(site, fwhm_mm=site.fwhm_mm + 3.0, noise=1.4 * site.noise, suv_bias=1.12 * site.suv_bias)


USUAL = World()
Job = tuple[Path, Cohort, int, int, World]
# Nodes and inflamed nodes overlap in uptake and size, so that neither alone tells them apart; external scanners blur,
# scatter and count more than any that was trained on (choice).
HARD = World(4.8, 2.2, 0.8, 5, 4.4, 1.6, True)


@dataclass(frozen=True)
class Lesion:
    """One focus of uptake; `label` is background for a harmless inflamed node. Canonical frame, mm; `suv` unblurred."""

    label: int
    place: Place
    side: int
    volume_ml: float
    suv: float
    necrosis: float = 0.0  # share of the radius that is a cold core

    @property
    def radius_mm(self) -> float:
        """Of the sphere of this volume."""
        return (self.volume_ml * 1000 * 3 / (4 * math.pi)) ** (1 / 3)

    @property
    def centre(self) -> np.ndarray:
        """The larger the lesion, the further its centre from where it began."""
        grown = np.asarray(self.place.at) + np.asarray(self.place.grows) * self.radius_mm
        return grown * (self.side, 1, 1)


@dataclass(frozen=True)
class Patient:
    """A synthetic patient: images (PET in SUV, CT in HU, labels) on their own grids, and what is true of it."""

    name: str
    pet: sitk.Image
    ct: sitk.Image
    reference: sitk.Image
    truth: dict[str, Any] = field(repr=False)


# --- lesions


def _lognormal(rng: np.random.Generator, median: float, mean: float) -> float:
    return float(rng.lognormal(math.log(median), math.sqrt(2 * math.log(mean / median))))


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    p = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=p / p.sum()))


def _scattered(place: Place, rng: np.random.Generator) -> Place:
    at = np.asarray(place.at) + rng.normal(0, 0.6, 3) * place.scatter_mm
    stretch = np.asarray(place.stretch) * rng.lognormal(0, 0.12, 3)
    return replace(place, at=tuple(at.tolist()), stretch=tuple(stretch.tolist()))


def _primary(rng: np.random.Generator, subsite: str, burden: Burden) -> Lesion:
    places = MUCOSA[subsite]
    place = places[int(_choose(rng, {str(i): p.weight for i, p in enumerate(places)}))]
    small = 0.55 if subsite == "larynx" else 1.16  # laryngeal cancers are found earlier
    volume = float(np.clip(_lognormal(rng, *burden.primary_ml) * small, 0.4, 120))
    suv = 5.0 * rng.lognormal(0, 0.1) if rng.random() < 0.06 else rng.lognormal(math.log(12.2), 0.38)
    necrosis = rng.uniform(0.35, 0.6) if volume > 12 and rng.random() < 0.3 else 0.0
    return Lesion(PRIMARY, _scattered(place, rng), int(rng.choice((-1, 1))), volume, float(suv), necrosis)


def _node(rng: np.random.Generator, subsite: str, side: int, burden: Burden, world: World) -> Lesion:
    contralateral = 0.35 if subsite == "nasopharynx" else 0.2
    side = -side if rng.random() < contralateral else side
    level = LEVELS[_choose(rng, SPREAD[subsite])]
    volume = float(np.clip(_lognormal(rng, *burden.node_ml), 0.15, min(level.largest_ml, 70)))
    suv = rng.lognormal(math.log(world.node_suv), 0.5) * (volume / 2.7) ** 0.1
    suv = float(np.clip(suv, world.lowest_node_suv, 30))
    necrosis = rng.uniform(0.4, 0.65) if volume > 5 and rng.random() < 0.35 else 0.0
    return Lesion(NODES, _scattered(level, rng), side, volume, suv, necrosis)


def _inflamed(rng: np.random.Generator, world: World) -> Lesion:
    place = LEVELS[_choose(rng, {"I": 0.2, "II": 0.55, "III": 0.1, "V": 0.15})]
    suv = float(rng.lognormal(math.log(world.inflamed_suv), 0.25))
    at, side = _scattered(place, rng), int(rng.choice((-1, 1)))
    return Lesion(BACKGROUND, at, side, float(rng.uniform(0.25, world.largest_inflamed_ml)), suv)


def _lesions(rng: np.random.Generator, cohort: Cohort, subsite: str, world: World = USUAL) -> list[Lesion]:
    """All foci of a patient: the primary unless it is not visible, its nodes, and harmless inflamed nodes."""
    burden = BURDEN[cohort]
    visible = rng.random() < burden.visible_primary
    nodal = not visible or rng.random() > NODE_FREE[subsite]
    count = min(int(rng.geometric(1 / burden.nodes)), 8) if nodal else 0
    primary = _primary(rng, subsite, burden)
    nodes = [_node(rng, subsite, primary.side, burden, world) for _ in range(count)]
    inflamed = int(rng.integers(1, world.most_inflamed + 1)) if rng.random() < world.inflamed else 0
    benign = [_inflamed(rng, world) for _ in range(inflamed)]
    return [primary] * visible + nodes + benign


def _grow(body: Body, lesion: Lesion, owner: np.ndarray, number: int, rng: np.random.Generator) -> None:
    """Paint a lesion: the `volume_ml` nearest free voxels round its centre, by an irregular distance.

    Taking voxels by rank makes the volume exact whatever the warp, the irregularity and the walls round the lesion.
    """
    radius, centre = lesion.radius_mm, lesion.centre
    reach = 1.9 * radius * np.asarray(lesion.place.stretch) + 6
    box = body.box(centre - reach, centre + reach)
    if box is None:
        return
    stretch = np.asarray(lesion.place.stretch).reshape(3, 1, 1, 1)
    offset = (body.canonical[:, *box] - centre.reshape(3, 1, 1, 1)) / stretch
    wobble = smooth_noise(rng, offset.shape[1:], max(int(radius / SPACING_MM), 2))
    rough = 0.22 if lesion.label == PRIMARY else 0.1
    distance = np.sqrt((offset**2).sum(axis=0)) * np.exp(rough * wobble)
    free = (owner[box] == 0) & (body.depth_mm[box] > 4) & (body.hu[box] < 280) & ~body.in_cranium(box)
    voxels = min(max(round(lesion.volume_ml * 1000 / SPACING_MM**3), 6), int(free.sum()))
    if voxels == 0:
        return
    edge = np.partition(distance[free], voxels - 1)[voxels - 1]
    cover = np.clip((edge - distance) / SPACING_MM + 0.5, 0, 1) * free
    owner[box][free & (distance <= edge)] = number
    texture = np.exp(0.18 * smooth_noise(rng, distance.shape, 4))
    core = np.clip((lesion.necrosis * edge - distance) / SPACING_MM + 0.5, 0, 1) if lesion.necrosis else 0.0
    suv = lesion.suv * texture * (1 - core) + 1.2 * core
    hu = (65 + 25 * body.contrast) * (1 - core) + 20 * core
    body.suv[box] += cover * (suv - body.suv[box])
    body.hu[box] += cover * (hu - body.hu[box])


# --- images


def _field(size_xy: int, spacing: Point, flip: Point, centre: np.ndarray, z_range: tuple[float, float]) -> Grid:
    """The grid whose field is centred at (x, y) = `centre` and spans `z_range`, with axes along ±x, ±y, ±z."""
    low, high = z_range
    size = (size_xy, size_xy, int((high - low) / spacing[2]))
    middle = np.array([*centre, (low + high) / 2])
    origin = middle - np.asarray(flip) * (np.asarray(size) - 1) / 2 * spacing
    return Grid(size, spacing, tuple(np.round(origin, 3).tolist()), tuple(np.diag(flip).ravel().tolist()))


def _onto(array: np.ndarray, origin_mm: np.ndarray, grid: Grid, *, outside: float) -> np.ndarray:
    drawing = Grid(anatomy.SHAPE, (SPACING_MM,) * 3, tuple(origin_mm.tolist()))
    return to_array(resample(to_image(array, drawing), grid, outside=outside))


def _nearest_owner(owner: np.ndarray, origin_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """Lesion numbers on `grid`: each voxel takes that of the nearest voxel drawn."""
    axes = []
    for i in range(3):
        centres = grid.origin_mm[i] + grid.matrix[i, i] * np.arange(grid.size[i])
        axes.append(np.rint((centres - origin_mm[i]) / SPACING_MM).astype(int).clip(0, owner.shape[i] - 1))
    return owner[np.ix_(*axes)]


def _white(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """White noise (float32) whose memory order is that of `_onto`'s arrays, which makes arithmetic with them fast."""
    return rng.standard_normal(shape[::-1], dtype=np.float32).T


def _scan_pet(suv: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """Noise of the reconstruction: correlated over the resolution, variance in proportion to activity."""
    sigma = site.fwhm_mm / 2.3548 / np.array(site.pet_mm)
    noise = ndimage.gaussian_filter(_white(suv.shape, rng).T, sigma[::-1], truncate=2.5).T
    noise *= site.noise * rng.lognormal(0, 0.2) / noise.std()
    pet = suv + noise * np.sqrt(np.maximum(suv, 0) + np.float32(0.02))
    # Steps of 1/1024 are finer than any scanner's storage and let the file be compressed.
    return np.round(np.maximum(pet, 0) * 1024) / np.float32(1024)


def _scan_ct(hu: np.ndarray, teeth: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """Noise, stronger where the slice is wide (shoulders), and in some patients streaks of metal near voxel `teeth`."""
    noise = _white(hu.shape, rng)
    noise[1:] += noise[:-1]
    noise[:, 1:] += noise[:, :-1]
    body = hu > -500
    area = body.sum(axis=(0, 1))
    wide = np.sqrt(area / max(float(np.median(area)), 1.0)).clip(0.8, 2.0).astype(np.float32)
    noise *= np.where(body, wide, np.float32(0.3)) * np.float32(site.ct_noise_hu / 2)
    noise += hu
    if rng.random() < DENTAL_METAL:
        _add_streaks(noise, teeth, site.ct_mm, rng)
    # Steps of 2 HU are well below the noise and let the file be compressed.
    return (np.clip(np.round(noise / 2), -512, 1535) * 2).astype(np.int16)


def _add_streaks(hu: np.ndarray, teeth: np.ndarray, spacing: Point, rng: np.random.Generator) -> None:
    """Bright and dark rays from one to three fillings; they fade over 6 cm and over a few slices."""
    x, y = np.meshgrid(*(np.arange(n) for n in hu.shape[:2]), indexing="ij")
    angles = np.linspace(-np.pi, np.pi, 181)
    for _ in range(int(rng.integers(1, 4))):
        at = teeth + np.array([rng.uniform(-28, 28), rng.uniform(0, 25), rng.uniform(-8, 8)]) / spacing
        rays = ndimage.gaussian_filter1d(rng.standard_normal(181), 2.0, mode="wrap") * 2.5
        dx, dy = (x - at[0]) * spacing[0], (y - at[1]) * spacing[1]
        distance = np.hypot(dx, dy)
        plane = np.interp(np.arctan2(dy, dx), angles, rays) * np.exp(-distance / 60) * rng.uniform(80, 350)
        plane += 2500 * np.exp(-((distance / 4) ** 2))
        for k in range(hu.shape[2]):
            fade = math.exp(-(((k - at[2]) * spacing[2] / 5) ** 2))
            if fade > 0.05:
                hu[:, :, k] += (fade * plane * (hu[:, :, k] > -900)).astype(np.float32)


# --- reference


def _reference(
    pet: np.ndarray, owner: np.ndarray, spacing: Point, labels: list[int], rng: np.random.Generator
) -> np.ndarray:
    """Labels on the PET grid: each true lesion delineated by adaptive threshold, then as the observer corrects it."""
    reference = np.zeros(pet.shape, np.uint8)
    if not owner.any():
        return reference
    margin = np.ceil(25 / np.array(spacing)).astype(int)
    inside = np.argwhere(owner)
    low, high = (inside.min(axis=0) - margin).clip(0), inside.max(axis=0) + margin + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    pet, owner = pet[box], owner[box]
    distance, nearest = ndimage.distance_transform_edt(owner == 0, spacing, return_indices=True)
    territory = owner[tuple(nearest)]
    for number, label in enumerate(labels, start=1):
        if label != BACKGROUND and (owner == number).any():
            mine = territory == number
            roi = _delineate(pet, owner == number, distance, mine, label, rng)
            reference[box][roi] = label
    return reference


def _delineate(
    pet: np.ndarray, truth: np.ndarray, distance: np.ndarray, mine: np.ndarray, label: int, rng: np.random.Generator
) -> np.ndarray:
    """T = 0.39 (R - Bg) + Bg with R the lesion's maximum and Bg the median of its surroundings (Hofheinz 2013)."""
    corrected = rng.random() < CORRECTED[label]
    kind = rng.choice(["tighter", "wider", "filled", "trimmed"]) if corrected else ""
    shell = mine & (distance > 8) & (distance < 22) & (pet > 0.15)
    background = float(np.median(pet[shell])) if shell.any() else 1.0
    fraction = {"tighter": 0.48, "wider": 0.32}.get(kind, 0.39)
    threshold = background + fraction * (float(pet[truth].max()) - background)
    reach = 3.0 if kind == "trimmed" else 7.0
    roi = mine & (distance <= reach) & (pet > threshold)
    parts, _ = ndimage.label(roi)
    kept = np.unique(parts[truth & roi])
    roi = np.isin(parts, kept[kept > 0])
    if kind == "filled":
        roi = ndimage.binary_fill_holes(ndimage.binary_closing(roi, iterations=2)) & mine | roi
    return roi if roi.any() else truth


# --- the person


def _person(rng: np.random.Generator, cohort: Cohort) -> dict[str, Any]:
    """Sex, age and subsite with Paper's frequencies."""
    men, age = (535 / 698, 61) if cohort == "main" else (138 / 181, 63)
    return {
        "sex": "M" if rng.random() < men else "F",
        "age": int(np.clip(round(rng.normal(age, 9.5)), 25, 89)),
        "tumour_site": _choose(rng, SUBSITES[cohort]),
    }


def _stage(rng: np.random.Generator, burden_ml: float, nodes: int) -> str:
    """UICC stage: IV in about 69 % (Paper); more disease, higher stage (assumption)."""
    score = 0.5 * math.log2(burden_ml + 1) + 0.9 * min(nodes, 3) + rng.normal(0, 0.8)
    return ["I", "II", "III", "IV"][int(np.searchsorted((1.0, 1.6, 2.35), score))]


def _hpv(rng: np.random.Generator, subsite: str) -> str:
    """p16/HPV status: known in 60 %; positive in half of the oropharynx, else in 5 % (assumption)."""
    positive = rng.random() < (0.5 if subsite == "oropharynx" else 0.05)
    return ("positive" if positive else "negative") if rng.random() < 0.6 else "unknown"


def _outcome(rng: np.random.Generator, ttb_ml: float, cohort: Cohort) -> dict[str, Any]:
    """Overall survival from a Weibull Cox model on log2(TTB + 1) with independent censoring (choice)."""
    excess = math.log2(ttb_ml + 1) - math.log2(REFERENCE_TTB_ML + 1)
    scale = MEDIAN_MONTHS_AT_REFERENCE / math.log(2) ** (1 / WEIBULL_SHAPE)
    months = scale * (rng.exponential() / HAZARD_PER_DOUBLING**excess) ** (1 / WEIBULL_SHAPE)
    censored = rng.uniform(2, 10) if rng.random() < 0.02 else 14 + 90 * rng.beta(1.3, 2.0)
    return {
        "survival_eligible": int(rng.random() < (585 / 698 if cohort == "main" else 142 / 181)),
        "followup_months": round(float(np.clip(min(months, censored), 0.3, None)), 1),
        "death": int(months <= censored),
    }


# --- the patient


def _site(cohort: Cohort, index: int, seed: int) -> Site:
    """Golden-ratio sequence over the shares: a small cohort already has every large site, whatever its size."""
    u = (0.5 + seed * 0.7548776662 + index * 0.6180339887) % 1
    sites = SITES[cohort]
    edges = np.cumsum([site.share for site in sites])
    return sites[min(int(np.searchsorted(edges, u)), len(sites) - 1)]


def _name(cohort: Cohort, index: int) -> str:
    return f"{PREFIX[cohort]}{index + 1:04d}"


def make_patient(cohort: Cohort, index: int, seed: int, world: World = USUAL) -> Patient:
    """Patient number `index` (from 0) of a cohort; the same for the same arguments, whatever else is drawn.

    PET is float32 SUV (body weight), CT int16 HU, the reference uint8 on the PET's grid; the CT has a grid of its own.
    """
    streams = np.random.SeedSequence([seed, COHORTS.index(cohort), index, VERSION]).spawn(6)
    person_rng, body_rng, lesion_rng, scan_rng, observer_rng, outcome_rng = map(np.random.default_rng, streams)
    site = world.site(cohort, _site(cohort, index, seed))
    person = _person(person_rng, cohort)
    body = draw_body(body_rng, female=person["sex"] == "F", contrast=bool(person_rng.random() < 0.4))
    lesions = _lesions(lesion_rng, cohort, person["tumour_site"], world)
    owner = np.zeros(anatomy.SHAPE, np.uint8, order="F")
    for number, lesion in enumerate(lesions, start=1):
        _grow(body, lesion, owner, number, lesion_rng)
    pet, ct, reference = _scan(body, owner, [lesion.label for lesion in lesions], site, scan_rng, observer_rng)
    name = _name(cohort, index)
    truth = {"patient": name, "cohort": cohort, "site": site.name}
    return Patient(name, pet, ct, reference, truth | _truth(person, person_rng, outcome_rng, cohort, lesions, owner))


def _scan(
    body: Body,
    owner: np.ndarray,
    labels: list[int],
    site: Site,
    rng: np.random.Generator,
    observer: np.random.Generator,
) -> tuple[sitk.Image, sitk.Image, sitk.Image]:
    """PET, CT and reference through the site's scanners; the field reaches at least below the thyroid."""
    bed = np.array([rng.normal(0, 7), rng.normal(0, 9), rng.uniform(-900, 200)])
    length = float(np.clip(rng.normal(site.field_mm, 25), 220, 400))
    top = min(232 + rng.uniform(0, 15), length - 118 + rng.uniform(0, 8))
    origin, field_z = LOW_MM + bed, (top - length + bed[2], top + bed[2])
    pet_grid = _field(site.pet_size, site.pet_mm, site.flip, rng.normal(0, 4, 2), field_z)
    ct_z = (field_z[0] - rng.uniform(0, 6), field_z[1] + rng.uniform(0, 6))
    ct_grid = _field(site.ct_size, site.ct_mm, (1.0, 1.0, 1.0), rng.normal(0, 4, 2), ct_z)
    moved = origin + rng.normal(0, 1.0, 3)  # patients move a little between CT and PET
    scale = np.float32(site.suv_bias * rng.lognormal(0, 0.1))
    pet = _scan_pet(_onto(blur(body.suv, site.fwhm_mm) * scale, moved, pet_grid, outside=0.0), site, rng)
    teeth = ct_grid.to_indices((body.where(TEETH_MM) + bed)[None])[0]
    ct = _scan_ct(_onto(body.hu, origin, ct_grid, outside=-1000.0), teeth, site, rng)
    reference = _reference(pet, _nearest_owner(owner, moved, pet_grid), site.pet_mm, labels, observer)
    return to_image(pet, pet_grid), to_image(ct, ct_grid), to_image(reference, pet_grid)


def _truth(
    person: dict[str, Any],
    person_rng: np.random.Generator,
    outcome_rng: np.random.Generator,
    cohort: Cohort,
    lesions: list[Lesion],
    owner: np.ndarray,
) -> dict[str, Any]:
    """The row of cohort.csv without its paths; volumes are those of the drawn lesions, ml."""
    voxels = np.bincount(owner.ravel(), minlength=len(lesions) + 1)[1:] * SPACING_MM**3 / 1000
    labels = np.array([lesion.label for lesion in lesions], int)
    primary, nodes = float(voxels[labels == PRIMARY].sum()), float(voxels[labels == NODES].sum())
    count = int((labels == NODES).sum())
    return {
        "exclusion": "",
        **_outcome(outcome_rng, primary + nodes, cohort),
        **person,
        "stage": _stage(person_rng, primary + nodes, count),
        "hpv": _hpv(person_rng, person["tumour_site"]),
        "synthetic": 1,
        "true_ttb_ml": round(primary + nodes, 3),
        "true_primary_ml": round(primary, 3),
        "true_nodes_ml": round(nodes, 3),
        "true_nodes": count,
        "inflamed_nodes": int((labels == BACKGROUND).sum()),
    }


# --- the cohort

COLUMNS = (
    "patient", "cohort", "site", "pet", "ct", "reference", "exclusion", "survival_eligible", "followup_months", "death",
    "age", "sex", "tumour_site", "stage", "hpv", "person", "synthetic", "true_ttb_ml", "true_primary_ml",
    "true_nodes_ml", "true_nodes", "inflamed_nodes",
)  # fmt: skip


def write_cohort(
    out: Path,
    patients: int,
    external: int,
    seed: int,
    *,
    hard: bool = False,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `patients` main and `external` external patients below `out`; returns the path of its cohort.csv.

    `hard`: low-uptake nodes, many inflamed ones, and external scanners unlike the main cohort's, see `HARD`.
    Patients already written by the same command are kept, so that a stopped command is completed by running it again.
    `processes` defaults to the processors at hand; the patients do not depend on it. `progress(done, total)` is called
    after each patient. Raises `InputError` for impossible numbers and for a folder that holds something else.
    """
    out = Path(out)
    _check_numbers(patients, external, seed)
    claim = {"phantom_version": VERSION, "patients": patients, "external": external, "seed": seed}
    _claim(out, claim | ({"hard": True} if hard else {}))
    wanted: list[tuple[Cohort, int]] = [("main", i) for i in range(patients)] + [
        ("external", i) for i in range(external)
    ]
    jobs = [(out, cohort, index, seed, HARD if hard else USUAL) for cohort, index in wanted]
    for done, _ in enumerate(_work(jobs, processes), start=1):
        if progress:
            progress(done, len(jobs))
    rows = [json.loads(_record(out, _name(c, i)).read_text(encoding="utf-8")) for c, i in wanted]
    write_text(out / "cohort.csv", pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False))
    return out / "cohort.csv"


def _check_numbers(patients: int, external: int, seed: int) -> None:
    if patients < 1:
        raise InputError("a cohort needs at least one main patient", value=patients, remedy="ask for 1 or more.")
    if external < 0:
        raise InputError(
            "the number of external patients cannot be negative", value=external, remedy="ask for 0 or more."
        )
    if seed < 0:
        raise InputError("the seed cannot be negative", value=seed, remedy="give 0 or more.")


def _claim(out: Path, parameters: dict[str, int]) -> None:
    """Mark the folder as this cohort's, or refuse one that holds anything else."""
    record = out / "phantom.json"
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found != parameters:
            raise InputError(
                f"holds another synthetic cohort: {found}, asked for {parameters}",
                file=out,
                remedy="choose another folder, or delete this one.",
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is not empty and holds no synthetic cohort", file=out, remedy="choose a new folder.")
    else:
        write_json(record, parameters)


def _work(jobs: list[Job], processes: int | None) -> Iterator[None]:
    workers = min(processes or os.cpu_count() or 1, len(jobs))
    if workers == 1:
        yield from map(_write_patient, jobs)
        return
    # Spawned, not forked: a fork of a process with threads (ITK, torch) may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_write_patient, job) for job in jobs]):
            yield future.result()


def _record(out: Path, name: str) -> Path:
    return out / "images" / f"{name}.json"


def _write_patient(job: Job) -> None:
    """Images first, the record last: a patient with a record is complete."""
    out, cohort, index, seed, world = job
    name = _name(cohort, index)
    files = {kind: f"images/{name}_{kind}.nii.gz" for kind in ("pet", "ct", "reference")}
    if _record(out, name).exists() and all((out / file).exists() for file in files.values()):
        return
    patient = make_patient(cohort, index, seed, world)
    for kind, file in files.items():
        write_image(getattr(patient, kind), out / file)
    write_json(_record(out, name), patient.truth | files | {"person": name})
