"""The classes of every label map in the study, and the targets that are reported."""

from __future__ import annotations

import numpy as np

BACKGROUND, PRIMARY, NODES = 0, 1, 2
CLASS_NAMES = {BACKGROUND: "background", PRIMARY: "primary", NODES: "nodes"}
LESION_CLASSES = {"primary": PRIMARY, "nodes": NODES}
TARGETS = {"primary": (PRIMARY,), "nodes": (NODES,), "all": (PRIMARY, NODES)}


def target_mask(labels: np.ndarray, target: str) -> np.ndarray:
    """Voxels of a target (`primary`, `nodes` or `all`, the union) in a label map of any shape."""
    return np.isin(labels, TARGETS[target])
