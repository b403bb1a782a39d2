"""Calibration of the probability of a lesion: does a tenth of the voxels of probability 0.1 hold lesion?

The stored probability is round(255 p) in uint8, of a lesion of either class, as `inference.predict_patients` leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from mtvlib import lesions, pet
from mtvlib.intervals import Bootstrap, all_entries, interval_columns, ratio

FULL = 255  # what the stored map holds where the probability is 1
BINS = 10
BAND_MM = 10.0
EDGE = math.ceil(FULL / BINS)  # the lowest stored value that does not lie in the lowest bin


def lesion_region(reference: np.ndarray, probability: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Voxels, bool (x, y, z), within 10 mm of one in the reference or with a probability of at least 0.1.

    Among all voxels of a patient, those far from any lesion would make every network look calibrated. Each voxel of at
    least 0.1 is in the region, so that it is only in the lowest bin that surroundings are chosen (choice).
    """
    seeds = (reference > 0) | (probability >= EDGE)
    region, box = np.zeros(seeds.shape, bool), lesions.bounding_box(seeds)
    if box[0].stop > box[0].start:
        margins = [math.ceil(BAND_MM / side) for side in spacing_mm]
        grown = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margins, strict=True))
        region[grown] = ndimage.distance_transform_edt(~seeds[grown], spacing_mm) <= BAND_MM
    return region


def calibration_counts(reference: np.ndarray, probability: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Sums over the voxels of each bin of probability within `lesion_region`, ml: (10, 4).

    Columns: volume, probability, lesion (the share of the volume that is in the reference) and squared error.
    """
    region = lesion_region(reference, probability, spacing_mm)
    values, lesion = probability[region].astype(int), (reference[region] > 0).astype(float)
    bins, p = np.minimum(values * BINS // FULL, BINS - 1), values / FULL
    sums = [np.bincount(bins, weights, BINS) for weights in (np.ones(len(p)), p, lesion, (p - lesion) ** 2)]
    return np.column_stack(sums) * pet.voxel_ml(spacing_mm)


def calibration(counts: np.ndarray, bootstrap: Bootstrap) -> tuple[dict[str, Any], pd.DataFrame]:
    """Block of summary.json and bins of the reliability diagram from the patients' `calibration_counts` (n, 10, 4).

    `ece`: expected calibration error, the mean distance of probability and observed share over the bins, weighted by
    volume (Guo et al. 2017, eq. 3); among few patients chance alone makes it positive. `ece_of_suspected`: the same
    without the lowest bin, which holds most of the volume. `brier`: mean squared error (Brier 1950), and
    `brier_of_constant` that of the region's own share of lesion, given to every voxel. `volume_ratio`: expected volume,
    the sum of the probabilities, by the reference's.
    """
    counts = np.asarray(counts, float)
    no_lesion = {"volume_ratio": "no patient has a lesion in the reference"}
    reasons = dict.fromkeys(("ece", "brier", "brier_of_constant"), "no voxel lies near a lesion") | no_lesion
    reasons["ece_of_suspected"] = f"no voxel has a probability of {1 / BINS:g}"
    shares = {f"observed_{number}": int(n) for number, n in enumerate((counts[:, :, 0] > 0).sum(0))}
    estimates = bootstrap.of_sums(counts.reshape(len(counts), -1), _calibration_of_sums, reasons, shares)
    sums, edges, rows = counts.sum(0), np.linspace(0, 1, BINS + 1).round(10), []
    for number in range(BINS):
        observed = estimates.pop(f"observed_{number}")
        row = {"p_low": edges[number], "p_high": edges[number + 1], "volume_ml": sums[number, 0]}
        row["probability"] = float(ratio(sums[number, 1], sums[number, 0]))
        rows.append(row | interval_columns("observed", observed))
    return all_entries(estimates), pd.DataFrame(rows)


def _calibration_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    volume_ml, probability, lesion, squared = np.moveaxis(sums.reshape(*sums.shape[:-1], BINS, 4), -1, 0)
    observed, share = ratio(lesion, volume_ml), ratio(lesion.sum(-1), volume_ml.sum(-1))
    apart = np.abs(probability - lesion)
    estimates = {
        "ece": ratio(apart.sum(-1), volume_ml.sum(-1)),
        "ece_of_suspected": ratio(apart[..., 1:].sum(-1), volume_ml[..., 1:].sum(-1)),
        "brier": ratio(squared.sum(-1), volume_ml.sum(-1)),
        "brier_of_constant": share * (1 - share),
        "volume_ratio": ratio(probability.sum(-1), lesion.sum(-1)),
    }
    return estimates | {f"observed_{number}": observed[..., number] for number in range(BINS)}
