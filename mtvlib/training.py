"""Training of one fold: loss, loop, validation, checkpoint after each epoch, resume.

What an epoch does depends on the parameters, the fold and the number of the epoch alone, so a run that was killed and
resumed from the last epoch's checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import copy
import ctypes
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtvlib.classes import LESION_CLASSES
from mtvlib.errors import InputError, WorkError
from mtvlib.files import atomic_path, write_text
from mtvlib.network import Network, NetworkConfig, build
from mtvlib.params import FOLDS, IMAGES, NETWORK, NORMALIZATION, PATCHES, TRAINING, Params
from mtvlib.patching import PatchPool, patch_pool

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
STATE_FILE, PREVIOUS_FILE = "training_state.safetensors", "training_state.previous.safetensors"
TRAIN_ANEW = "delete it to train this fold anew."
_OPTIMIZER_STATE = {  # what PyTorch keeps for each parameter
    "adadelta": ("step", "square_avg", "acc_delta"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
}


@dataclass(frozen=True)
class Epoch:
    """One line of history.csv."""

    epoch: int  # from 1
    train_loss: float  # mean of the steps
    validation_soft_dsc: float
    seconds: float


@dataclass
class Training:
    """A fold's training at the end of an epoch: all that a resume needs."""

    network: Network
    optimizer: torch.optim.Optimizer
    mean: Network | None  # with the running mean of the weights, if the parameter `ema` asks for it
    history: list[Epoch]
    best_epoch: int
    best_weights: dict[str, Tensor]

    @property
    def validated(self) -> Network:
        """The network that is validated and kept."""
        return self.network if self.mean is None else self.mean

    @property
    def best_soft_dsc(self) -> float:
        return self.history[self.best_epoch - 1].validation_soft_dsc if self.best_epoch else -math.inf


def network_config(params: Params) -> NetworkConfig:
    return NetworkConfig(
        in_channels=len(params.channels),
        patch_shape=params.patch_shape,
        filters=tuple(params.filters),
        units_per_level=params.units_per_level,
        attention=params.attention,
        attention_heads=params.attention_heads,
    )


def choose_device(name: str) -> torch.device:
    """The device of the parameter `device`: `auto` takes CUDA where there is one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device is cuda, but PyTorch finds no CUDA device", remedy="set device to auto or cpu.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def use_processor(threads: int) -> None:
    """Compute on that many threads, and keep freed memory for the next tensor instead of giving it back each time.

    A network frees and asks for tensors of 30 MB hundreds of times a second; glibc would fetch each one anew from the
    system, page by page, which takes as long as half of the arithmetic. Where there is no glibc nothing is changed.
    """
    torch.set_num_threads(threads)
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


# --- loss and monitor


def dice_terms(probabilities: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Per class, over batch and voxels: twice the soft intersection and the sum of both volumes; each (K,)."""
    over = (0, *range(2, probabilities.ndim))
    return 2 * (probabilities * one_hot).sum(over), probabilities.sum(over) + one_hot.sum(over)


def dice_cross_entropy(logits: Tensor, labels: Tensor, *, smooth: float, background: bool) -> Tensor:
    """Dice + cross-entropy with equal weights (paper, "Training procedure"; the exact form is its supplement's).

    Choice: L = 1 - mean_k (2 sum p_k g_k + s) / (sum p_k + sum g_k + s) - mean_voxels log p_true, the sums over the
    whole batch (a patch without a lesion then cannot dominate), k over the lesion classes unless `background`.
    `logits` (N, K, X, Y, Z), `labels` (N, X, Y, Z) int64.
    """
    logits = logits.float()
    one_hot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    twice_intersection, volumes = dice_terms(torch.softmax(logits, 1), one_hot)
    dice = (twice_intersection + smooth) / (volumes + smooth)
    return 1 - dice[0 if background else 1 :].mean() + F.cross_entropy(logits, labels)


@torch.no_grad()
def validation_soft_dsc(network: Network, pool: PatchPool, batch_size: int) -> float:
    """The monitor: soft DSC pooled over the whole validation set, mean over the lesion classes that occur in it.

    Pooling avoids 0/0 where a patch or a patient has no lesion of a class (choice; the paper's form is its
    supplement's).
    """
    network.eval()
    twice_intersection: Tensor | float = 0.0
    volumes: Tensor | float = 0.0
    reference = torch.zeros(network.config.classes, device=pool.labels.device)
    for first in range(0, len(pool), batch_size):
        inputs, labels = pool.batch(range(first, min(first + batch_size, len(pool))))
        probabilities = torch.softmax(network(inputs).float(), 1)
        one_hot = F.one_hot(labels, network.config.classes).movedim(-1, 1).float()
        intersection, volume = dice_terms(probabilities, one_hot)
        twice_intersection, volumes = twice_intersection + intersection, volumes + volume
        reference += one_hot.sum((0, 2, 3, 4))
    present = [k for k in LESION_CLASSES.values() if reference[k] > 0]
    if not present:
        raise InputError(
            "no validation patient has a lesion in the reference, so the best epoch cannot be chosen",
            remedy="add patients with lesions or change the seed of the folds.",
        )
    return float((twice_intersection / volumes)[present].mean())  # type: ignore[index]


# --- one fold


def make_optimizer(network: Network, params: Params) -> torch.optim.Optimizer:
    if params.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    return torch.optim.Adadelta(
        network.parameters(),
        lr=params.learning_rate,
        rho=params.adadelta_rho,
        eps=params.adadelta_eps,
        weight_decay=params.weight_decay,
    )


def learning_rate(params: Params, epochs_done: int) -> float:
    """Learning rate of the next epoch: constant, or falling towards the last one ("poly", as in nnU-Net; choice)."""
    if params.learning_rate_power is None:
        return params.learning_rate
    return params.learning_rate * (1 - epochs_done / params.epochs) ** params.learning_rate_power


def batches(with_lesion: Sequence[bool], params: Params, fold: int, epoch: int) -> list[list[int]]:
    """Patch numbers of each step of an epoch; `with_lesion`: for every patch whether it holds a lesion.

    Every patch comes once in a random order (paper), or `steps_per_epoch` batches are drawn; with `foreground_share`,
    that share of them from the patches with a lesion. Random numbers come from (seed, fold, epoch), which is what makes
    a resumed run repeat the one that was killed.
    """
    random = np.random.default_rng([params.seed, fold, epoch])
    steps, patches = params.steps_per_epoch, len(with_lesion)
    wanted = patches if steps is None else steps * params.batch_size
    if params.foreground_share is None:
        order = _draw(random, np.arange(patches), wanted)
    else:
        inside = np.flatnonzero(with_lesion)
        foreground = round(params.foreground_share * wanted) if len(inside) else 0
        outside = np.flatnonzero(~np.asarray(with_lesion))
        foreground = foreground if len(outside) else wanted
        drawn = [_draw(random, inside, foreground), _draw(random, outside, wanted - foreground)]
        order = random.permutation(np.concatenate(drawn))
    return [order[first : first + params.batch_size].tolist() for first in range(0, len(order), params.batch_size)]


def _draw(random: np.random.Generator, numbers: np.ndarray, wanted: int) -> np.ndarray:
    """`wanted` of the numbers in a random order, each as often as the others give or take one."""
    rounds = math.ceil(wanted / len(numbers)) if wanted else 0
    return np.concatenate([np.empty(0, int), *(random.permutation(numbers) for _ in range(rounds))])[:wanted]


def train_epoch(training: Training, pool: PatchPool, params: Params, fold: int, patients: Sequence[str]) -> float:
    """One pass of training steps; returns the mean loss. Raises `WorkError` when the loss is no longer finite."""
    training.network.train()
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(params, len(training.history))
    device = pool.inputs.device
    losses = []
    epoch = len(training.history) + 1
    steps = batches(pool.with_lesion, params, fold, epoch)
    flips = np.random.default_rng([params.seed, fold, epoch, 1]).random((len(steps), params.batch_size)) < 0.5
    for step, (batch, flip) in enumerate(zip(steps, flips, strict=True), start=(epoch - 1) * len(steps)):
        inputs, labels = pool.batch(batch)
        if params.flip:
            inputs, labels = mirror(inputs, flip[: len(batch)], 2), mirror(labels, flip[: len(batch)], 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bfloat16"):
            logits = training.network(inputs)
        loss = dice_cross_entropy(logits, labels, smooth=params.dice_smooth, background=params.dice_background)
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.optimizer.step()
        if training.mean is not None and params.ema is not None:
            update_mean(training.mean, training.network, params.ema, step)
        losses.append(loss.detach())
    values = torch.stack(losses)
    if not bool(torch.isfinite(values).all()):
        raise WorkError(
            f"training diverged in fold {fold}, epoch {len(training.history) + 1}: the loss is {float(values.mean())}; "
            f"the weights of the epochs before are kept",
            remedy="lower learning_rate, set precision to float32, or look at the images of "
            + ", ".join(sorted(set(patients))[:5])
            + " ...",
        )
    return float(values.mean())


def mirror(batch: Tensor, which: np.ndarray, axis: int) -> Tensor:
    """A batch in which the samples named by `which` (N,) are reversed along an axis."""
    chosen = torch.from_numpy(which).to(batch.device).view(-1, *[1] * (batch.ndim - 1))
    return torch.where(chosen, batch.flip(axis), batch)


@torch.no_grad()
def update_mean(mean: Network, network: Network, decay: float, step: int) -> None:
    """mean <- d mean + (1 - d) network; d rises to `decay` so that the first steps are forgotten soon."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, value in zip(mean.parameters(), network.parameters(), strict=True):
        average.lerp_(value, 1 - decay)


def start(params: Params, fold: int, device: torch.device) -> Training:
    network = build(network_config(params), seed=params.seed * 1000 + fold).to(device)
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    mean = None if params.ema is None else copy.deepcopy(network)
    return Training(network, make_optimizer(network, params), mean, [], 0, {})


def train_fold(
    train: Sequence[tuple[str, np.ndarray, np.ndarray]],
    validation: Sequence[tuple[str, np.ndarray, np.ndarray]],
    params: Params,
    fold: int,
    folder: Path,
    *,
    basis: str = "",
    report: Callable[[Training], None] = lambda training: None,
    say: Callable[[str], None] = lambda line: None,
) -> Training:
    """Train until `epochs`, or `patience` epochs without a better soft DSC; resumes what `folder` holds.

    A checkpoint of this study and fold that was made with other parameters, or from another `basis` (code and images,
    see `Study.basis`), is put aside and training starts anew; `say` gets a line about it.

    `train`, `validation`: (patient, inputs (C, x, y, z) float32 in [0, 1], labels (x, y, z) uint8). After each epoch
    the state is written to `folder` and `report` is called, after a resume as well. Returns the training with
    `best_weights` of the best epoch. Raises `InputError` if nobody is left to train or validate on or `folder` holds
    another training, and `WorkError` if training diverges or the device runs out of memory.
    """
    if not train or not validation:
        raise InputError(
            f"fold {fold} has {len(train)} patients to train and {len(validation)} to validate on",
            remedy="add patients or use fewer folds.",
        )
    device = choose_device(params.device)
    use_processor(params.threads)
    depth = params.patch_shape[2]
    try:
        pool = patch_pool([(x, y) for _, x, y in train], depth, params.patch_stride, device)
        # Validation sees each slice once (windows side by side): a quarter of the cost of overlapping ones.
        check = patch_pool([(x, y) for _, x, y in validation], depth, depth, device)
        training = start(params, fold, device)
        if (folder / STATE_FILE).exists():
            resume(training, folder / STATE_FILE, params, fold, basis, say)
        if training.history:
            report(training)  # Snakemake deletes history.csv of a step that it does again
        while not is_finished(training, params):
            run_epoch(training, pool, check, params, fold, [patient for patient, _, _ in train])
            save_state(training, folder / STATE_FILE, params, fold, basis)
            report(training)
    except torch.cuda.OutOfMemoryError:
        raise WorkError(
            "the graphics card ran out of memory",
            value=f"batch_size {params.batch_size}",
            remedy="lower batch_size, or filters.",
        ) from None
    return training


def is_finished(training: Training, params: Params) -> bool:
    done = len(training.history)
    return done >= params.epochs or done - training.best_epoch >= params.patience


def run_epoch(
    training: Training, pool: PatchPool, check: PatchPool, params: Params, fold: int, patients: Sequence[str]
) -> None:
    began = time.perf_counter()
    loss = train_epoch(training, pool, params, fold, patients)
    soft_dsc = validation_soft_dsc(training.validated, check, params.batch_size)
    better = soft_dsc > training.best_soft_dsc
    training.history.append(Epoch(len(training.history) + 1, loss, soft_dsc, time.perf_counter() - began))
    if better:
        training.best_epoch = len(training.history)
        training.best_weights = {
            name: value.detach().clone() for name, value in training.validated.state_dict().items()
        }


# --- what a reader sees of it


def reporter(folder: Path, params: Params, say: Callable[[str], None]) -> Callable[[Training], None]:
    """After each epoch: history.csv for the report and for live watching, and one line about it."""

    def report(training: Training) -> None:
        lines = [",".join(field.name for field in fields(Epoch))]
        lines += [",".join(f"{value:.6g}" for value in astuple(epoch)) for epoch in training.history]
        write_text(folder / "history.csv", "\n".join(lines) + "\n")
        last = training.history[-1]
        seconds = float(np.median([epoch.seconds for epoch in training.history])) * (params.epochs - last.epoch)
        say(
            f"epoch {last.epoch} of {params.epochs}, loss {last.train_loss:.3f}, "
            f"soft DSC {last.validation_soft_dsc:.3f} (best {training.best_soft_dsc:.3f}), "
            f"at most {seconds / 60:.1f} min left"
        )

    return report


def describe(training: Training, params: Params, fold: int, patients: dict[str, int]) -> str:
    """One paragraph of the report about a fold's training."""
    done = len(training.history)
    why = "the most that the parameters allow" if done == params.epochs else f"{params.patience} without a better one"
    minutes = sum(epoch.seconds for epoch in training.history) / 60
    return (
        f"Fold {fold}: {patients['train']} patients to train, {patients['validation']} to validate, "
        f"{patients['test']} to test. Training ended after {done} epochs ({why}; {minutes:.1f} min). Epoch "
        f"{training.best_epoch} was kept, with a soft DSC of {training.best_soft_dsc:.3f} in validation."
    )


# --- the checkpoint: one safetensors file a fold, replaced in one step after each epoch


def training_params(params: Params) -> dict[str, Any]:
    """The parameters that determine what an epoch of training does; a checkpoint is of use only with the same ones.

    The number of epochs is one of them where the learning rate falls towards the last.
    """
    decay = () if params.learning_rate_power is None else ("epochs",)
    return params.part(("seed", "threads", *IMAGES, *NORMALIZATION, *PATCHES, *NETWORK, *FOLDS, *TRAINING, *decay))


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


def resume(training: Training, path: Path, params: Params, fold: int, basis: str, say: Callable[[str], None]) -> None:
    """Continue from a checkpoint, or put it aside if parameters, code or images changed since it was written.

    Raises `InputError` if it is damaged or belongs to another study or fold: that is no change but a mistake.
    """
    about, tensors = read_state(path)
    if (about["study"], about["fold"]) != (params.name, fold):
        raise InputError(
            f"this checkpoint belongs to study {about['study']}, fold {about['fold']}",
            file=path,
            value=f"wanted: {params.name}, fold {fold}",
            remedy="delete it to train this fold anew, or copy the right one.",
        )
    changed = changes(about, params, basis)
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
        for name in _OPTIMIZER_STATE[about["params"]["optimizer"]]:
            shapes[f"optimizer.{index}.{name}"] = () if name == "step" else tuple(parameter.shape)
    return shapes


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["mtv_training"])
            _check_about(about)
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"is not a readable checkpoint of a training ({type(error).__name__}: {error})",
            file=path,
            remedy=TRAIN_ANEW,
        ) from None


def _check_about(about: Any) -> None:
    """Raise `TypeError`, `KeyError` or `ValueError` unless this is what `save_state` writes beside the tensors."""
    missing = {"study", "fold", "basis", "best_epoch", "params", "history"} - set(about)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if not isinstance(about["params"], dict):
        raise TypeError("params is no mapping")
    history = [Epoch(**epoch) for epoch in about["history"]]
    if about["best_epoch"] not in range(len(history) + 1):
        raise ValueError(f"best_epoch is {about['best_epoch']} of {len(history)}")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
