"""A fold's training as it stands, and the checkpoint that keeps it: one safetensors file, replaced after each epoch.

All random numbers of an epoch come from (seed, fold, epoch, step), so the number of epochs done is all that there is of
random states; the schedule of the learning rate follows from it as well. A checkpoint holds the weights, their running
mean, those of the best epoch, the optimiser's state and the history.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtvlib import optimisation
from mtvlib.errors import InputError
from mtvlib.files import atomic_path
from mtvlib.network import Network
from mtvlib.params import FOLDS, IMAGES, NETWORK, NORMALIZATION, PATCHES, TRAINING, Params

STATE_FILE, PREVIOUS_FILE = "training_state.safetensors", "training_state.previous.safetensors"
TRAIN_ANEW = "delete it to train this fold anew."


@dataclass(frozen=True)
class Epoch:
    """One line of history.csv; what an older version of this package did not measure is nan."""

    epoch: int  # from 1
    train_loss: float  # mean of the steps
    validation_soft_dsc: float
    seconds: float
    dice_loss: float = math.nan  # mean of the steps, as is the next
    cross_entropy: float = math.nan
    soft_dsc_primary: float = math.nan  # of validation; nan where no patient has such a lesion
    soft_dsc_nodes: float = math.nan
    learning_rate: float = math.nan  # of the last step
    gradient_norm: float = math.nan  # median of the steps, before it is cut
    patches_per_second: float = math.nan  # of training, without validation
    foreground_share: float = math.nan  # patches with a lesion among those trained on


@dataclass
class Training:
    """A fold's training at the end of an epoch: all that a resume needs."""

    network: Network
    optimizer: torch.optim.Optimizer
    mean: Network | None  # with the running mean of the weights, if the parameter `ema` asks for it
    history: list[Epoch]
    best_epoch: int
    best_weights: dict[str, Tensor]
    compiled: Callable[[Tensor], Tensor] | None = None  # the network as torch.compile made it

    @property
    def validated(self) -> Network:
        """The network that is validated and kept."""
        return self.network if self.mean is None else self.mean

    @property
    def best_soft_dsc(self) -> float:
        return self.history[self.best_epoch - 1].validation_soft_dsc if self.best_epoch else -math.inf


def training_params(params: Params) -> dict[str, Any]:
    """The parameters that determine what an epoch of training does; a checkpoint is of use only with the same ones.

    The number of epochs is one of them where the learning rate falls towards the last.
    """
    decay = () if params.learning_rate_power is None else ("epochs",)
    return params.part(("seed", "threads", *IMAGES, *NORMALIZATION, *PATCHES, *NETWORK, *FOLDS, *TRAINING, *decay))


# --- writing


def save_state(training: Training, path: Path, params: Params, fold: int, basis: str = "") -> None:
    tensors = {f"network.{name}": value for name, value in training.network.state_dict().items()}
    if training.mean is not None:
        tensors |= {f"mean.{name}": value for name, value in training.mean.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in training.best_weights.items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    about = {
        "study": params.name,
        "fold": fold,
        "basis": basis,
        "best_epoch": training.best_epoch,
        "params": training_params(params),
        "history": [asdict(epoch) for epoch in training.history],
    }
    with atomic_path(path) as temporary:
        save_file(
            {name: value.contiguous().cpu() for name, value in tensors.items()},
            temporary,
            {"mtv_training": json.dumps(about)},
        )


def sweep(folder: Path) -> None:
    """Remove what a kill during the writing of a checkpoint left behind."""
    for path in folder.glob(f".*.{STATE_FILE}"):
        with suppress(OSError):
            path.unlink()


# --- going on


def resume(training: Training, path: Path, params: Params, fold: int, basis: str, say: Callable[[str], None]) -> None:
    """Continue from a checkpoint, or put it aside if parameters, code or images changed since it was written.

    Raises `InputError` if it is damaged or belongs to another study or fold: that is no change but a mistake.
    """
    about, tensors = read_state(path)
    changed = changes(about, params, basis)
    # A study that was renamed trains on the same patients, by the same code and parameters: it goes on.
    renamed = about["study"] != params.name and bool(basis) and not changed
    if about["fold"] != fold or (about["study"] != params.name and not renamed):
        raise InputError(
            f"this checkpoint belongs to study {about['study']}, fold {about['fold']}",
            file=path,
            value=f"wanted: {params.name}, fold {fold}",
            remedy="delete it to train this fold anew, or copy the right one.",
        )
    if changed:
        path.replace(path.with_name(PREVIOUS_FILE))
        say(f"resumed nothing: {'; '.join(changed)}; the earlier checkpoint is kept as {PREVIOUS_FILE}")
    else:
        _check_tensors(training, about, tensors, path)
        restore(training, about, tensors)
        say(f"resumed after epoch {len(training.history)}")


def changes(about: dict[str, Any], params: Params, basis: str) -> list[str]:
    """What differs between the training that wrote a checkpoint and this one."""
    there, here = about["params"], training_params(params)
    found = [f"{name} was {there.get(name)}, is {here[name]}" for name in here if there.get(name) != here[name]]
    if "epochs" in here and there.get("epochs") != here["epochs"]:
        found.append(
            "the learning rate falls towards the last epoch, so with another number of epochs every epoch is another"
        )
    return found + (["the code, the images or the patients changed"] if about["basis"] != basis else [])


def restore(training: Training, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    training.network.load_state_dict(_part(tensors, "network."))
    if training.mean is not None:
        training.mean.load_state_dict(_part(tensors, "mean."))
    training.best_weights = _part(tensors, "best.")
    training.best_epoch = about["best_epoch"]
    training.history = [Epoch(**epoch) for epoch in about["history"]]
    state = training.optimizer.state_dict()
    state["state"] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state["state"].setdefault(int(index), {})[key] = value
    training.optimizer.load_state_dict(state)


def check_resumable(folders: Sequence[Path], params: Params, basis: Callable[[int], str | None]) -> None:
    """Raise `InputError` unless a run that must go on finds something to go on with, and nothing it would do anew.

    `folders`: those of the folds; `basis(fold)`: what the fold would be trained from, None if that is not known yet.
    """
    states = [(fold, folder / STATE_FILE) for fold, folder in enumerate(folders) if (folder / STATE_FILE).exists()]
    if not states:
        raise InputError(
            "there is nothing to resume: no fold of this study has a checkpoint",
            file=folders[0].parent,
            remedy="leave --resume out to start it.",
        )
    for fold, path in states:
        about = read_about(path)
        now = basis(fold)
        changed = changes(about, params, about["basis"] if now is None else now)
        if changed:
            raise InputError(
                f"fold {fold} cannot be resumed: {'; '.join(changed)}",
                file=path,
                remedy="undo the change, or leave --resume out to train the fold anew.",
            )


# --- reading


def _check_tensors(training: Training, about: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Raise `InputError` unless a checkpoint of this training holds all that a resume needs, in the right shapes.

    PyTorch would start an optimiser without its state anew, and a best epoch without its weights would be lost.
    """
    wanted = _state_shapes(training, about)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    if wrong:
        raise InputError(
            f"is not a whole checkpoint: {len(wrong)} of {len(wanted)} tensors are missing, misshapen or unknown",
            file=path,
            value=", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else ""),
            remedy=TRAIN_ANEW,
        )


def _state_shapes(training: Training, about: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `save_state` writes for such a training."""
    copies = ["network", *(["mean"] if training.mean is not None else []), *(["best"] if about["best_epoch"] else [])]
    own = {name: tuple(value.shape) for name, value in training.network.state_dict().items()}
    shapes = {f"{copy}.{name}": shape for copy in copies for name, shape in own.items()}
    for index, parameter in enumerate(training.network.parameters()):
        for name in optimisation.STATE[about["params"]["optimizer"]]:
            shapes[f"optimizer.{index}.{name}"] = () if name == "step" else tuple(parameter.shape)
    return shapes


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = _about(file.metadata())
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def read_about(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return _about(file.metadata())
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"is not a readable checkpoint of a training ({type(error).__name__}: {error})", file=path, remedy=TRAIN_ANEW
    )


def _about(metadata: dict[str, str] | None) -> dict[str, Any]:
    """Raise `TypeError`, `KeyError` or `ValueError` unless this is what `save_state` writes beside the tensors."""
    about = json.loads((metadata or {})["mtv_training"])
    missing = {"study", "fold", "basis", "best_epoch", "params", "history"} - set(about)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if not isinstance(about["params"], dict):
        raise TypeError("params is no mapping")
    history = [Epoch(**epoch) for epoch in about["history"]]
    if about["best_epoch"] not in range(len(history) + 1):
        raise ValueError(f"best_epoch is {about['best_epoch']} of {len(history)}")
    return about


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
