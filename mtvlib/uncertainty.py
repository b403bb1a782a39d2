"""How sure the network is of a patient and of a lesion, from its probabilities and from models that disagree.

Nothing here needs a reference but the last functions, which ask whether the uncertainty tells where the errors are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mtvlib import lesions, metrics
from mtvlib.calibration import FULL
from mtvlib.classes import CLASS_NAMES
from mtvlib.intervals import Bootstrap, all_entries, ratio

FEW = "fewer than three patients, or all are alike"


def expected_dsc(probability: np.ndarray, delineated: np.ndarray) -> float:
    """The DSC that the probabilities promise: 2 sum(p d) / (sum(p) + sum(d)), d the delineation (bool); 1 for 0 / 0.

    "Soft Dice confidence" (Borges et al. 2024, arXiv 2402.10665), near the expectation of the DSC if the probabilities
    are right and voxels independent. It needs no reference.
    """
    inside, everywhere = (int(part.sum(dtype=np.int64)) for part in (probability[delineated], probability))
    size = FULL * int(np.count_nonzero(delineated))
    return 2 * inside / (everywhere + size) if everywhere + size else 1.0


def model_dsc(votes: np.ndarray, models: int) -> float:
    """Mean DSC of all pairs of models from their votes, each as `metrics.dsc`; 1 - this is their disagreement."""
    kinds, sizes = np.unique(votes[votes > 0], return_counts=True)
    chosen = _bits(kinds, models).astype(float)
    both = (chosen * sizes[:, None]).T @ chosen  # (models, models), voxels
    pairs = [metrics.dsc(both[a, a], both[b, b], both[a, b]) for a, b in combinations(range(models), 2)]
    return float(np.mean(pairs))


def lesion_certainty(
    prediction: np.ndarray,
    probability: np.ndarray,
    votes: np.ndarray | None,
    models: int,
    connectivity: lesions.Connectivity = 26,
) -> list[dict[str, Any]]:
    """The lesions of a predicted label map (x, y, z), numbered as in lesions.csv, with their mean probability.

    `models_agreeing`: how many models call at least half of the lesion's voxels a lesion; None without votes.
    """
    box = lesions.bounding_box(prediction)
    labels, numbers = prediction[box], lesions.components(prediction[box], connectivity)
    found, counts = [], dict.fromkeys(CLASS_NAMES, 0)
    for index in np.argsort(-np.bincount(numbers.ravel(), minlength=1)[1:], kind="stable"):
        lesion = numbers == index + 1
        label = int(labels[lesion][0])
        counts[label] += 1
        row = {"target": CLASS_NAMES[label], "lesion": counts[label]}
        row |= {"mean_probability": float(probability[box][lesion].mean()) / FULL}
        found.append(row | {"models_agreeing": None if votes is None else _agreeing(votes[box][lesion], models)})
    return found


def _agreeing(votes: np.ndarray, models: int) -> int:
    shares = _bits(votes, models).mean(0)
    return int((shares >= 0.5).sum())


def _bits(votes: np.ndarray, models: int) -> np.ndarray:
    """Each model's vote, (n, models) of 0 and 1, from votes (n,)."""
    return (votes[:, None].astype(np.uint64) >> np.arange(models, dtype=np.uint64)) & np.uint64(1)


def spearman(values: np.ndarray) -> np.ndarray:
    """Rank correlation of both columns of samples (..., n, 2), ties with their mean rank; NaN below three patients."""
    ranks = stats.rankdata(values, axis=-2)
    deviation = ranks - ranks.mean(-2, keepdims=True)
    cross = (deviation[..., 0] * deviation[..., 1]).sum(-1)
    scale = np.sqrt((deviation**2).sum(-2).prod(-1))
    return ratio(cross, scale if values.shape[-2] >= 3 else 0 * scale)


def uncertainty(patients: pd.DataFrame, models: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Whether `expected_dsc` and, of several models, `model_dsc` tell which patients (rows) have a low `dsc_all`.

    Of each: rank correlation `spearman`, `mean`, and `excess`, the mean minus that of the true DSC.
    """
    block: dict[str, Any] = {"models": models}
    for name in ("expected_dsc", "model_dsc") if models > 1 else ("expected_dsc",):
        pairs = patients[[name, "dsc_all"]].to_numpy(float)
        block[name] = all_entries(bootstrap.of_sample(pairs, _uncertainty_of_sample, {"spearman": FEW}))
    return block


def _uncertainty_of_sample(pairs: np.ndarray) -> dict[str, np.ndarray]:
    mean, true = np.moveaxis(pairs.mean(-2), -1, 0)
    return {"spearman": spearman(pairs), "mean": mean, "excess": mean - true}


def lesion_auc(patients: Sequence[str], found: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """Whether the mean probability tells confirmed from spurious lesions: area under the ROC curve.

    `found`: columns patient, mean_probability, outcome (TP, FP). The area is the share of pairs of a confirmed and a
    spurious lesion in which the former has the higher probability; ties count half (Hanley and McNeil 1982).
    """
    row = {patient: number for number, patient in enumerate(patients)}
    theirs = found[found["patient"].isin(row)].sort_values("mean_probability")
    sides = [theirs[theirs["outcome"] == outcome] for outcome in ("TP", "FP")]
    high, low = (side["mean_probability"].to_numpy(float) for side in sides)
    of_high, of_low = (np.array([row[patient] for patient in side["patient"]], int) for side in sides)
    below, up_to = (np.searchsorted(low, high, side) for side in ("left", "right"))  # spurious ones; ties between

    def area(weights: np.ndarray) -> dict[str, np.ndarray]:
        of_confirmed, of_spurious = weights[:, of_high], weights[:, of_low]
        sums = np.concatenate([np.zeros((len(weights), 1)), of_spurious.cumsum(axis=1)], axis=1)
        won = (of_confirmed * (sums[:, below] + sums[:, up_to]) / 2).sum(axis=1)
        return {"auc": ratio(won, of_confirmed.sum(axis=1) * of_spurious.sum(axis=1))}

    reasons = {"auc": "there are not both confirmed and spurious lesions"}
    numbers = {"n_confirmed": len(high), "n_spurious": len(low)}
    return numbers | all_entries(bootstrap.of_weights(len(patients), area, reasons))
