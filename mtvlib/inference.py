"""Trained weights and a prepared volume: class probabilities, the mean over an ensemble, and classes.

A model is a folder with `weights.safetensors` and `model.json` (architecture, preprocessing, classes, training, the
weights' sha256). Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import mtvlib
from mtvlib import fingerprint
from mtvlib.classes import BACKGROUND, CLASS_NAMES
from mtvlib.errors import InputError
from mtvlib.execution import probabilities_of
from mtvlib.files import atomic_path, sha256, write_json, write_text
from mtvlib.network import BothSides, Network, NetworkConfig
from mtvlib.params import FOLDS, IMAGES, NORMALIZATION, PATCHES, PREDICTION, Params
from mtvlib.patching import pad_axially, window_starts
from mtvlib.prepare import load_patient, read_record
from mtvlib.stitching import stitched_slabs
from mtvlib.study import Study
from mtvlib.training import Training, choose_device, training_params, use_processor
from mtvlib.volume import to_image, write_image

WEIGHTS_FILE, MODEL_FILE = "weights.safetensors", "model.json"
_FORMAT = "mtv-model-1"
# Of the windows that go through a network together: on a graphics card four of the paper's; a processor is busy with a
# quarter of one.
VOXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**21}
INDEX_COLUMNS = ["patient", "sha256", "probability_sha256", "votes_sha256", "models"]

INTENDED_USE = (
    "Research: delineation of the metabolic tumour volume of head and neck cancer in FDG PET/CT, and its division into "
    "primary tumour and lymph node metastases, to be checked by a physician. No medical device, and no basis for the "
    "care of a patient."
)
LIMITS = (
    "Other tracers, other cancers, other parts of the body, patients after treatment and images that were not prepared "
    "as `preprocessing` says were not part of the training."
)

COPY_AGAIN = "delete it and run the study again, or copy the model's folder again."
# What turns images into the network's input: a model is of use only with the same values.
PREPROCESSING = (*IMAGES, *NORMALIZATION, *PATCHES)
# What a prediction reads of model.json; the rest is for people.
_NEEDED: dict[str, Any] = {
    "architecture": {},
    "preprocessing": {name: {} for name in PREPROCESSING},
    "training": {"fold": {}, "params": {name: {} for name in (*PREPROCESSING, *FOLDS)}},
    "sha256": {WEIGHTS_FILE: {}},
}


@dataclass(frozen=True)
class Model:
    network: Network | BothSides  # the latter by the parameter `test_time_flip`
    about: dict[str, Any]  # model.json


def save_model(
    training: Training,
    folder: Path,
    params: Params,
    fold: int,
    patients: dict[str, int],
    data: dict[str, Any] | None = None,
) -> None:
    """Write the best epoch's weights and `model.json`; `patients`: number in each part, `data`: `Study.origin`."""
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in training.best_weights.items()}, temporary)
    about = {
        "format": _FORMAT,
        "mtvlib": mtvlib.__version__,
        "torch": torch.__version__,
        "intended_use": INTENDED_USE,
        "limits": LIMITS,
        "licence": params.weights_licence,
        "classes": {str(number): name for number, name in CLASS_NAMES.items()},
        "architecture": training.network.config.to_dict(),
        "preprocessing": params.part(PREPROCESSING),
        "prediction": params.part(PREDICTION),
        "training": {
            "fold": fold,
            "patients": patients,
            **(data or {}),
            "params": training_params(params),
            "epochs": len(training.history),
            "best_epoch": training.best_epoch,
            "best": asdict(training.history[training.best_epoch - 1]),
        },
        "sha256": {WEIGHTS_FILE: sha256(folder / WEIGHTS_FILE)},
    }
    write_json(folder / MODEL_FILE, about)


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a model's folder. Raises `InputError` if a file is missing, damaged, or not what `model.json` says."""
    folder = Path(folder)
    about = _read_about(folder / MODEL_FILE)
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        raise InputError("the model has no weights", file=weights, remedy="copy the whole folder of the model.")
    if sha256(weights) != about["sha256"][WEIGHTS_FILE]:
        raise InputError(
            "the weights are not those that model.json describes: their sha256 differs",
            file=weights,
            remedy=COPY_AGAIN,
        )
    try:
        network = Network(NetworkConfig.from_dict(about["architecture"]))
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the weights do not fit the architecture in model.json: {str(error)[:200]}",
            file=weights,
            remedy=COPY_AGAIN,
        ) from None
    # Channels last: the paper's network takes an eighth less time so on a processor, and less on a graphics card too.
    network = network.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    return Model(BothSides(network) if about.get("prediction", {}).get("test_time_flip") else network, about)


def study_models(study: Study) -> list[Model]:
    """The models of a study's folds, where its parameter `device` says."""
    chosen = choose_device(study.params.device)
    return [load_model(study.fold_folder(fold), chosen) for fold in range(study.params.folds)]


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        written_by = about["format"]
    except FileNotFoundError:
        raise InputError(
            "there is no model here", file=path, remedy="name a folder that a training finished."
        ) from None
    except (ValueError, KeyError, TypeError):  # not JSON, not UTF-8, not a mapping
        raise InputError("is not the description of a model", file=path, remedy=COPY_AGAIN) from None
    if written_by != _FORMAT:
        raise InputError(
            "the model was written by another version",
            file=path,
            value=written_by,
            remedy="use the version of mtvlib that trained it, or train it anew.",
        )
    missing = list(_missing(about, _NEEDED))
    if missing:
        raise InputError(
            "the description of the model is not whole", file=path, value=f"no {', '.join(missing)}", remedy=COPY_AGAIN
        )
    return about


def _missing(values: Any, needed: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Places of a nested mapping where a needed key is not there, such as `sha256.weights.safetensors`."""
    for name, inside in needed.items():
        if not isinstance(values, dict) or name not in values:
            yield place + name
        else:
            yield from _missing(values[name], inside, f"{place}{name}.")


def check_preprocessing(models: Sequence[Model], params: Params) -> None:
    """Raise `InputError` unless all models were trained on images prepared as `params` says."""
    mine = params.part(PREPROCESSING)
    for model in models:
        for name, value in model.about["preprocessing"].items():
            if value != mine[name]:
                raise InputError(
                    f"a model was trained with {name} {value}, the study has {mine[name]}",
                    remedy="use models and parameters of one study.",
                )


def predictor(networks: Sequence[Network | BothSides]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mean softmax probabilities of the networks (paper, "Network evaluation": five models in external testing)."""

    def predict(windows: torch.Tensor) -> torch.Tensor:
        probabilities = probabilities_of(networks[0], windows)
        for network in networks[1:]:
            probabilities += probabilities_of(network, windows)
        return probabilities / len(networks)

    return predict


def predictor_of_each(networks: Sequence[Network | BothSides]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean as `predictor` gives it, to the last bit, and behind it each network's own: (N, K (1 + M), x, y, z)."""

    def predict(windows: torch.Tensor) -> torch.Tensor:
        each = [probabilities_of(network, windows) for network in networks]
        mean = each[0].clone()
        for probabilities in each[1:]:
            mean += probabilities
        return torch.cat([mean / len(networks), *each], 1)

    return predict


def predict_probabilities(
    networks: Sequence[Network | BothSides], inputs: np.ndarray, depth: int, stride: int
) -> np.ndarray:
    """Class probabilities (K, x, y, z) float32 of a prepared volume (C, x, y, z), the mean over the networks.

    Windows are stitched once for the mean of the networks: the weights do not depend on the network, so this equals
    stitching each network's map and averaging. Volumes shorter than a window are padded, and cut again. Small windows
    go through the networks several at once, since each call has a cost of its own.
    """
    *sides, length = inputs.shape[1:]
    whole: np.ndarray | None = None
    for first, slab in _slabs(predictor(networks), networks, inputs, depth, stride):
        if whole is None:
            whole = np.empty((length, len(slab), *sides[::-1]), np.float32).transpose(1, 3, 2, 0)  # slice after slice
        whole[..., first : first + slab.shape[-1]] = slab
    assert whole is not None
    return whole


def _mean_and_labels(slab: np.ndarray, networks: int) -> tuple[np.ndarray, np.ndarray]:
    """Of what `predictor_of_each` gives: the mean (K, x, y, z), and each network's labels (M, x, y, z)."""
    maps = slab.reshape(networks + 1, -1, *slab.shape[1:])
    return maps[0], np.stack([predict_labels(one) for one in maps[1:]])


def predict_maps(
    networks: Sequence[Network | BothSides], inputs: np.ndarray, depth: int, stride: int
) -> dict[str, np.ndarray]:
    """What is kept of a prepared volume (C, x, y, z), each (x, y, z): `labels`, `probability` and, of several, `votes`.

    See `predict_labels`, `quantised_lesion_probability` and `votes`. Probabilities are turned into these as soon as
    their slices are finished, so that memory beyond the results does not depend on the length of the volume.
    """
    several, parts = len(networks) > 1, []
    predict = predictor_of_each(networks) if several else predictor(networks)
    for _, slab in _slabs(predict, networks, inputs, depth, stride):
        mean, part = slab, {}
        if several:
            mean, each = _mean_and_labels(slab, len(networks))
            part["votes"] = votes(each)
        parts.append(part | {"labels": predict_labels(mean), "probability": quantised_lesion_probability(mean)})
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


@torch.inference_mode()
def _slabs(
    predict: Callable[[torch.Tensor], torch.Tensor],
    networks: Sequence[Network | BothSides],
    inputs: np.ndarray,
    depth: int,
    stride: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """`stitched_slabs` of a prepared volume on the networks' device, brought back and cut to the volume's length."""
    device = next(networks[0].parameters()).device
    length = inputs.shape[-1]
    turned = np.ascontiguousarray(pad_axially(inputs, depth).T, dtype=np.float32)  # slice after slice: (z, y, x, C)
    volume = torch.from_numpy(turned).to(device).permute(3, 2, 1, 0)
    starts = window_starts(length, depth, stride)
    at_once = max(1, VOXELS_AT_ONCE[device.type] // (volume[0, ..., 0].numel() * depth))
    for first, slab in stitched_slabs(predict, volume, depth, starts, windows_at_once=at_once):
        if first < length:
            yield first, slab[..., : length - first].cpu().numpy()


def predict_labels(probabilities: np.ndarray) -> np.ndarray:
    """Class of the highest probability of each voxel, (x, y, z) uint8; ties go to the lower class."""
    return probabilities.argmax(0).astype(np.uint8)


def quantised_lesion_probability(probabilities: np.ndarray) -> np.ndarray:
    """round(255 p) of the probability of a lesion of either class, p = 1 - background, (x, y, z) uint8."""
    return np.rint(255 * np.clip(1 - probabilities[BACKGROUND], 0, 1)).astype(np.uint8)


def votes(labels: np.ndarray) -> np.ndarray:
    """Which networks call each voxel a lesion: label maps (M, x, y, z) to (x, y, z), bit m set where network m does."""
    kind = np.min_scalar_type(2 ** len(labels) - 1)
    found = np.zeros(labels.shape[1:], kind)
    for number, one in enumerate(labels):
        found |= (one != BACKGROUND).astype(kind) << kind.type(number)
    return found


def predict_patients(
    models: Sequence[Model],
    study: Study,
    patients: Sequence[str],
    index: Path | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Delineate prepared patients by the mean of `models` into the study's `predictions/<patient>.nii.gz`.

    Beside each label map stay the probability of a lesion (`predictions/probability/`, `quantised_lesion_probability`)
    and, of several models, who of them calls a voxel a lesion (`predictions/votes/`, `votes`). `index` is written
    last, where a path is given: a table of patient, sha256 of the files (empty for none) and number of models, so that
    what depends on them can tell whether they changed. Returns it. A patient whose maps were made by the same weights
    and code from the same images keeps them; `predictions/made/` says what they were made from.
    """
    check_preprocessing(models, study.params)
    use_processor(study.params.threads)
    rows, code = [], fingerprint.of_modules([__name__])
    for number, patient in enumerate(patients, start=1):
        made_from = _made_from(models, study, patient, code)
        row = _kept(study, patient, made_from)
        if row is None:
            row = _predict_into([model.network for model in models], study, patient)
            write_json(_made(study, patient), {"from": made_from, "row": row})
        rows.append(row)
        say(f"patient {number} of {len(patients)} delineated")
    table = pd.DataFrame(rows, columns=INDEX_COLUMNS)
    if index is not None:
        write_text(index, table.to_csv(index=False))
    return table


def _made(study: Study, patient: str) -> Path:
    return study.predictions / "made" / f"{patient}.json"


def _made_from(models: Sequence[Model], study: Study, patient: str, code: str) -> str:
    """Hash of all that a patient's maps follow from; '' where a model does not say which weights it has."""
    weights = [model.about.get("sha256", {}).get(WEIGHTS_FILE) for model in models]
    if not all(weights):
        return ""
    prepared = read_record(study.volumes, patient)
    images = {name: source["sha256"] for name, source in prepared["sources"].items() if name != "reference"}
    kinds = [str(next(model.network.parameters()).device.type) for model in models]
    values = study.params.part((*PREPROCESSING, *PREDICTION, "threads"))
    parts = [code, torch.__version__, weights, kinds, images, prepared["params"], prepared["code"], values]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(study: Study, patient: str, made_from: str) -> dict[str, Any] | None:
    """The row of the index of a patient whose maps lie there, whole and made from the same; else None."""
    try:
        found = json.loads(_made(study, patient).read_text(encoding="utf-8"))
        same, row = found["from"] == made_from != "", {name: found["row"][name] for name in INDEX_COLUMNS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    columns = {"labels": "sha256", "probability": "probability_sha256", "votes": "votes_sha256"}
    paths = study.prediction_paths(patient)
    wanted = {paths[name]: row[column] for name, column in columns.items() if row[column]}
    whole = all(path.exists() and sha256(path) == digest for path, digest in wanted.items())
    return row if same and whole and row["sha256"] else None


def _predict_into(networks: Sequence[Network | BothSides], study: Study, patient: str) -> dict[str, Any]:
    """Write a patient's maps; returns his or her row of the index."""
    prepared = load_patient(study.volumes, patient, study.params)
    maps = predict_maps(networks, prepared.inputs, study.params.patch_shape[2], study.params.patch_stride)
    paths = study.prediction_paths(patient)
    for name, voxels in maps.items():
        write_image(to_image(voxels, prepared.grid), paths[name])
    digests = {name: sha256(paths[name]) if name in maps else "" for name in paths}
    return {
        "patient": patient,
        "sha256": digests["labels"],
        "probability_sha256": digests["probability"],
        "votes_sha256": digests["votes"],
        "models": len(networks),
    }
