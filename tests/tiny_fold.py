"""A fold of tiny patients and a network that learns them within seconds."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from mtvlib.files import write_json
from mtvlib.params import IMAGES, Params
from mtvlib.volume import Grid, to_image, write_image

PARAMS = Params(
    crop_shape=(16, 16),
    patch_shape=(16, 16, 16),
    patch_stride=8,
    filters=[4, 4, 8],
    units_per_level=1,
    attention_heads=2,
    epochs=4,
    batch_size=2,
    threads=1,
)


def patient(number):
    """Noise with a bright primary and a less bright node at random places."""
    random = np.random.default_rng(number)
    inputs = random.random((2, 16, 16, 20), dtype=np.float32) * 0.2
    labels = np.zeros((16, 16, 20), np.uint8)
    for label in (1, 2):
        x, y, z = random.integers(0, 11, 3)
        labels[x : x + 4, y : y + 4, z : z + 4] = label
        inputs[:, x : x + 4, y : y + 4, z : z + 4] += 0.8 / label
    return f"P{number}", inputs, labels


TRAIN, VALIDATION = [patient(i) for i in range(4)], [patient(9)]


def weights(result):
    return result.network.state_dict()


def assert_same_weights(one, other):
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    assert all(torch.equal(value, other.best_weights[name]) for name, value in one.best_weights.items())


WINDOWS = {"pet_normalization": "window", "pet_window_suv": (0.0, 1.0), "ct_window_hu": (0.0, 1.0)}


def write_prepared(volumes, params):
    """TRAIN and VALIDATION as step 1 leaves patients; with WINDOWS they are read as they are here."""
    for name, inputs, labels in [*TRAIN, *VALIDATION]:
        grid = Grid(labels.shape, (params.spacing_mm,) * 3, (0.0, 0.0, 0.0))
        images = {"pet": inputs[0], "ct": inputs[1], "reference": labels}
        for kind, array in images.items():
            write_image(to_image(array, grid), volumes / name / f"{kind}.nii")
        about = {"patient": name, "params": params.part(IMAGES), "grid": asdict(grid), "doubts": []}
        write_json(volumes / name / "prepared.json", about | {"sources": {kind: {} for kind in images}})
