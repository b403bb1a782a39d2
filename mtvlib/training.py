"""Training of one fold: loop, validation, health, resume, and what a reader sees of it.

What an epoch does depends on the parameters, the fold and the number of the epoch alone, so a run that was killed and
resumed from the last epoch's checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import copy
import ctypes
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtvlib import memory
from mtvlib.augment import augment
from mtvlib.augment import wanted as augmentation_wanted
from mtvlib.checkpoints import (
    STATE_FILE,
    Epoch,
    Training,
    read_state,
    restore,
    resume,
    save_state,
    sweep,
    training_params,
)
from mtvlib.classes import LESION_CLASSES, NODES, PRIMARY
from mtvlib.errors import InputError, WorkError
from mtvlib.files import write_text
from mtvlib.loss import Loss, PartsLoss, dice_terms, loss_of
from mtvlib.network import Network, NetworkConfig, along_x, build
from mtvlib.optimisation import learning_rate, limit_gradient, make_optimizer, set_learning_rate, update_mean
from mtvlib.params import Params
from mtvlib.patching import HOST_SHARE, PatchPool, batches, patch_pool
from mtvlib.ranks import ALONE, Ranks

__all__ = [  # what other rooms take from here, wherever it lives
    "Epoch", "Patients", "Training", "choose_device", "describe", "make_optimizer", "network_config", "reporter",
    "train_fold", "training_params", "use_processor",
]  # fmt: skip

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LOOK_BACK = 50  # steps after which losses are looked at: each look makes the host wait for the device once
DIVERGED = 20.0  # a loss above it is beyond repair: at the start it is about 2 (1 of Dice, ln 3 of cross-entropy)


class Patients(Sequence[tuple[str, np.ndarray, np.ndarray]]):
    """Patients that are read when they are asked for, so that only the pool of patches holds them all."""

    def __init__(self, names: Sequence[str], read: Callable[[str], tuple[str, np.ndarray, np.ndarray]]) -> None:
        self.names, self.read = names, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.read(self.names[index])


def network_config(params: Params) -> NetworkConfig:
    units = params.units_per_level
    return NetworkConfig(
        in_channels=len(params.channels),
        patch_shape=params.patch_shape,
        filters=tuple(params.filters),
        units_per_level=tuple(units) if isinstance(units, list) else units,
        attention=params.attention,
        attention_heads=params.attention_heads,
    )


# --- the machine


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of the parameter `device`: `auto` takes CUDA where there is one; of several ranks each has its own."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device is cuda, but PyTorch finds no CUDA device", remedy="set device to auto or cpu.")
    if not available or name == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if found < ranks.here:
        raise InputError(
            f"devices_per_fold asks for {ranks.here} CUDA devices, but PyTorch finds {found}",
            remedy="lower devices_per_fold, or run on a computer with more devices.",
        )
    return torch.device("cuda", ranks.local) if ranks.several else torch.device("cuda")


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


def start(params: Params, fold: int, device: torch.device) -> Training:
    """A training before its first epoch."""
    network = build(network_config(params), seed=params.seed * 1000 + fold)
    # Convolutions read channels last fastest: a tenth to a quarter less time for a step on a processor.
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.checkpoint_activations = params.checkpoint_activations
    mean = None if params.ema is None else copy.deepcopy(network)
    training = Training(network, make_optimizer(network, params), mean, [], 0, {})
    if params.compile:
        mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former: CUDA graphs
        training.compiled = torch.compile(network, mode=mode, dynamic=False)
    return training


@contextmanager
def memory_watch(params: Params) -> Iterator[None]:
    """Turn a want of memory into a `WorkError` that names the parameters to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        host = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not host and not isinstance(error, torch.OutOfMemoryError):
            raise
        names = ("batch_size", "accumulate", "checkpoint_activations")
        remedy = ["set checkpoint_activations to true (nothing else changes, a checkpoint goes on)"]
        remedy = [] if params.checkpoint_activations else remedy
        remedy += [f"raise accumulate (at most {params.batch_size})"] if params.accumulate < params.batch_size else []
        raise WorkError(
            f"{'the computer' if host else 'the graphics card'} ran out of memory",
            value=", ".join(f"{name} {getattr(params, name)}" for name in names),
            remedy="; else ".join([*remedy, "lower batch_size or filters"]) + ".",
        ) from None


# --- validation


@torch.no_grad()
def soft_dsc_by_class(network: Network, pool: PatchPool, batch_size: int, ranks: Ranks = ALONE) -> Tensor:
    """Soft DSC of each class (K,), pooled over the whole validation set; nan for the background and what is absent.

    Pooling avoids 0/0 where a patch or a patient has no lesion of a class (choice; the paper's form is its
    supplement's).
    """
    network.eval()
    twice_intersection, volumes, reference = torch.zeros(3, network.config.classes, device=pool.device)
    for first in ranks.share(range(0, len(pool), batch_size)):
        inputs, labels = pool.batch(range(first, min(first + batch_size, len(pool))))
        probabilities = torch.softmax(network(inputs).float(), 1)
        one_hot = F.one_hot(labels, network.config.classes).movedim(-1, 1).float()
        intersection, volume = dice_terms(probabilities, one_hot)
        twice_intersection, volumes = twice_intersection + intersection, volumes + volume
        reference += one_hot.sum((0, 2, 3, 4))
    ranks.add_up(twice_intersection, volumes, reference)
    absent = reference == 0
    absent[[k for k in range(len(reference)) if k not in LESION_CLASSES.values()]] = True
    if bool(absent.all()):
        raise InputError(
            "no validation patient has a lesion in the reference, so the best epoch cannot be chosen",
            remedy="add patients with lesions or change the seed of the folds.",
        )
    return torch.where(absent, torch.nan, twice_intersection / volumes).cpu()


def validation_soft_dsc(by_class: Tensor) -> float:
    """The monitor: the mean over the lesion classes that occur in the validation set."""
    return float(by_class[~by_class.isnan()].mean())


# --- an epoch


@dataclass
class Record:
    """What the steps of an epoch left behind; the numbers stay on the device until they are looked at."""

    pool: PatchPool
    fold: int
    epoch: int
    batches: list[list[int]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # each (3,): total, dice, cross-entropy
    norms: list[Tensor] = field(default_factory=list)
    looked_at: int = 0

    def add(self, batch: list[int], loss: Loss, norm: Tensor) -> None:
        self.batches.append(batch)
        self.losses.append(torch.stack([term.detach() for term in loss]))
        self.norms.append(norm)
        if len(self.batches) - self.looked_at >= LOOK_BACK:
            self.look()

    def look(self) -> None:
        """Raise `WorkError` that names step and patients if a step since the last look was no longer sound."""
        if self.looked_at == len(self.batches):  # the epoch ended where a look was due
            return
        values = torch.stack(self.losses[self.looked_at :])[:, 0].cpu()
        norms = torch.stack(self.norms[self.looked_at :]).cpu()
        bad = ~(values.isfinite() & (values < DIVERGED) & norms.isfinite())
        if bool(bad.any()):
            step = int(bad.nonzero()[0])
            self._stop(self.looked_at + step, float(values[step]), float(norms[step]))
        self.looked_at = len(self.batches)

    def _stop(self, step: int, loss: float, norm: float) -> None:
        batch = self.batches[step]
        patients = self.pool.patients_of(batch)
        broken = self.pool.patients_of(i for i in batch if not bool(self.pool.batch([i])[0].isfinite().all()))
        why = f"the images of {', '.join(broken)} hold values that are no numbers" if broken else "the images are sound"
        raise WorkError(
            f"training diverged in fold {self.fold}, epoch {self.epoch}, step {step + 1}: the loss is {loss:.4g}, the "
            f"gradient's norm {norm:.4g}; the batch was of {', '.join(patients)}, {why}; the weights of the epochs "
            "before are kept",
            patient=(broken or patients)[0] if len(broken or patients) == 1 else None,
            remedy="look at these patients' images."
            if broken
            else "look at these patients, lower learning_rate, set gradient_clip, or set precision to float32.",
        )


def step_gradient(
    training: Training,
    inputs: Tensor,
    labels: Tensor,
    params: Params,
    ranks: Ranks = ALONE,
    patches: int | None = None,
) -> Loss:
    """The loss of a batch of `patches`; its gradient is left in the network's parameters.

    `inputs`, `labels`: the whole batch, or what this one of several ranks takes of it, which may be nothing.
    """
    training.optimizer.zero_grad(set_to_none=True)
    if params.accumulate == 1 and not ranks.several:
        loss = loss_of(_logits(training, inputs, params), labels, params)
        loss.total.backward()
        return loss
    parts = list(zip(inputs.tensor_split(params.accumulate), labels.tensor_split(params.accumulate), strict=True))
    parts = [part for part in parts if len(part[0])] or [(inputs, labels)]
    pooled = PartsLoss(params, len(inputs) if patches is None else patches)
    if len(parts) == 1:  # its logits can wait for the sums of the other ranks
        _one_round(training, pooled, *parts[0], params, ranks)
    else:
        _two_rounds(training, pooled, parts, params, ranks)
    ranks.add_up(*_gradients(training.network), pooled.cross_entropy)
    return pooled.loss


def _one_round(
    training: Training, pooled: PartsLoss, inputs: Tensor, labels: Tensor, params: Params, ranks: Ranks
) -> None:
    logits = _logits(training, inputs, params)
    pooled.look(logits, labels)
    pooled.settle(ranks)
    if len(inputs):
        pooled.share(logits, labels).backward()


def _two_rounds(
    training: Training, pooled: PartsLoss, parts: Sequence[tuple[Tensor, Tensor]], params: Params, ranks: Ranks
) -> None:
    for inputs, labels in parts:
        with torch.no_grad():
            pooled.look(_logits(training, inputs, params), labels)
    pooled.settle(ranks)
    for inputs, labels in parts:
        pooled.share(_logits(training, inputs, params), labels).backward()


def _logits(training: Training, inputs: Tensor, params: Params) -> Tensor:
    if not len(inputs):  # a rank without patches
        return inputs.new_zeros((0, training.network.config.classes, *inputs.shape[2:]))
    network = training.network if training.compiled is None else training.compiled
    flat = inputs.shape[2] > inputs.shape[4] and inputs.device.type == "cpu" and not params.checkpoint_activations
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=params.precision == "bfloat16"):
        return along_x(training.network, inputs) if flat and training.compiled is None else network(inputs)


def _gradients(network: Network) -> list[Tensor]:
    """Of all parameters; zeros where this rank had no patches."""
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def train_epoch(training: Training, pool: PatchPool, params: Params, fold: int, ranks: Ranks = ALONE) -> Record:
    """One pass of training steps. Raises `WorkError`, at most `LOOK_BACK` steps later, when one is no longer sound."""
    training.network.train()
    epoch = len(training.history) + 1
    record = Record(pool, fold, epoch)
    steps = batches(pool.with_lesion, params, fold, epoch)
    flips = np.random.default_rng([params.seed, fold, epoch, 1]).random((len(steps), params.batch_size)) < 0.5
    augmented = augmentation_wanted(params)
    for step, (batch, flip) in enumerate(zip(steps, flips, strict=True)):
        part = ranks.part(len(batch))
        inputs, labels = pool.batch(batch[part])
        if params.flip:
            chosen = flip[: len(batch)][part]
            inputs, labels = mirror(inputs, chosen, 2), mirror(labels, chosen, 1)
        if augmented:
            inputs, labels = augment(inputs, labels, params, [params.seed, fold, epoch, 2, step], part.start)
        inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
        set_learning_rate(training.optimizer, learning_rate(params, epoch - 1 + (step + 0.5) / len(steps)))
        loss = step_gradient(training, inputs, labels, params, ranks, len(batch))
        norm = limit_gradient(training.network, params.gradient_clip)
        training.optimizer.step()
        if training.mean is not None and params.ema is not None:
            update_mean(training.mean, training.network, params.ema, step + (epoch - 1) * len(steps))
        record.add(batch, loss, norm)
    record.look()
    return record


def mirror(batch: Tensor, which: np.ndarray, axis: int) -> Tensor:
    """A batch in which the samples named by `which` (N,) are reversed along an axis."""
    chosen = torch.from_numpy(which).to(batch.device).view(-1, *[1] * (batch.ndim - 1))
    return torch.where(chosen, batch.flip(axis), batch)


def run_epoch(
    training: Training, pool: PatchPool, check: PatchPool, params: Params, fold: int, ranks: Ranks = ALONE
) -> None:
    """Train and validate once, and add the epoch to the history; the best one's weights are kept."""
    began = time.perf_counter()
    record = train_epoch(training, pool, params, fold, ranks)
    trained = time.perf_counter() - began
    by_class = soft_dsc_by_class(training.validated, check, params.batch_size, ranks)
    soft_dsc = validation_soft_dsc(by_class)
    better = soft_dsc > training.best_soft_dsc
    training.history.append(_measured(training, record, by_class, soft_dsc, trained, time.perf_counter() - began))
    if better:
        training.best_epoch = len(training.history)
        training.best_weights = {
            name: value.detach().clone() for name, value in training.validated.state_dict().items()
        }


def _measured(
    training: Training, record: Record, by_class: Tensor, soft_dsc: float, trained_s: float, seconds: float
) -> Epoch:
    losses, drawn = torch.stack(record.losses), [patch for batch in record.batches for patch in batch]
    return Epoch(
        epoch=record.epoch,
        train_loss=float(losses[:, 0].contiguous().mean()),
        validation_soft_dsc=soft_dsc,
        seconds=seconds,
        dice_loss=float(losses[:, 1].mean()),
        cross_entropy=float(losses[:, 2].mean()),
        soft_dsc_primary=float(by_class[PRIMARY]),
        soft_dsc_nodes=float(by_class[NODES]),
        learning_rate=training.optimizer.param_groups[0]["lr"],
        gradient_norm=float(torch.stack(record.norms).median()),
        patches_per_second=len(drawn) / trained_s,
        foreground_share=float(np.mean([record.pool.with_lesion[patch] for patch in drawn])),
    )


# --- one fold


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
    ranks: Ranks = ALONE,
) -> Training:
    """Train until `epochs`, or `patience` epochs without a better soft DSC; resumes what `folder` holds.

    A finished fold whose `epochs` or `patience` was raised goes on. A checkpoint of this study and fold that was made
    with other parameters, or from another `basis` (code and images, see `Study.basis`), is put aside and training
    starts anew; `say` gets a line about it. To a falling learning rate the number of epochs is such a parameter.

    `train`, `validation`: (patient, inputs (C, x, y, z) float32 in [0, 1], labels (x, y, z) uint8). After each epoch
    the state is written to `folder` and `report` is called, after a resume as well. Returns the training with
    `best_weights` of the best epoch. Raises `InputError` if nobody is left to train or validate on or `folder` holds
    another training, and `WorkError` if training diverges or the device runs out of memory.

    With `devices_per_fold` this starts that many processes, each of which calls this function as one of `ranks`; the
    first of them writes the checkpoints. `train` and `validation` are then `Patients` with a `prepare.Reader`.
    """
    if not train or not validation:
        raise InputError(
            f"fold {fold} has {len(train)} patients to train and {len(validation)} to validate on",
            remedy="add patients or use fewer folds.",
        )
    if params.devices_per_fold > 1 and not ranks.several:
        from mtvlib.together import train_together  # which starts processes that come back here

        return train_together(train, validation, params, fold, folder, basis=basis, report=report, say=say)
    device = choose_device(params.device, ranks)
    use_processor(params.threads)
    torch.backends.cudnn.benchmark = True  # every batch has one shape: the fastest kernels are found once
    depth = params.patch_shape[2]
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        sweep(folder)
    host_bytes = _host_bytes(params, ranks)
    with memory_watch(params):
        pool = patch_pool(train, depth, params.patch_stride, device, host_bytes=host_bytes, scratch=folder)
        # Validation sees each slice once (windows side by side): a quarter of the cost of overlapping ones.
        check = patch_pool(validation, depth, depth, device, host_bytes=host_bytes, scratch=folder)
        training = start(params, fold, device)
        go_on(training, folder / STATE_FILE, params, fold, basis, say, ranks)
        if training.history:
            report(training)  # Snakemake deletes history.csv of a step that it does again
        while not is_finished(training, params):
            run_epoch(training, pool, check, params, fold, ranks)
            if ranks.first:
                save_state(training, folder / STATE_FILE, params, fold, basis)
            report(training)
    return training


def _host_bytes(params: Params, ranks: Ranks) -> float | None:
    """Memory that each of the two pools of volumes may take in the computer; None: a share of what is free by then."""
    if params.volumes_gb is not None:
        return params.volumes_gb * 1e9 / (2 * ranks.here)
    return HOST_SHARE * memory.free_bytes() / ranks.here if ranks.several else None


def go_on(
    training: Training,
    path: Path,
    params: Params,
    fold: int,
    basis: str,
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> None:
    """Resume what the checkpoint holds, if any. The first of several ranks decides, since it may put it aside."""
    if ranks.first and path.exists():
        resume(training, path, params, fold, basis, say)
    epochs = ranks.from_first(len(training.history), next(training.network.parameters()).device)
    if epochs and not ranks.first:
        restore(training, *read_state(path))


def is_finished(training: Training, params: Params) -> bool:
    done = len(training.history)
    return done >= params.epochs or done - training.best_epoch >= params.patience


# --- what a reader sees of it


def reporter(folder: Path, params: Params, say: Callable[[str], None]) -> Callable[[Training], None]:
    """After each epoch: history.csv for the report and for live watching, and one line about it."""

    def report(training: Training) -> None:
        write_text(folder / "history.csv", history_csv(training.history))
        last = training.history[-1]
        seconds = float(np.median([epoch.seconds for epoch in training.history])) * (params.epochs - last.epoch)
        say(
            f"epoch {last.epoch} of {params.epochs}, loss {last.train_loss:.3f}, "
            f"soft DSC {last.validation_soft_dsc:.3f} (best {training.best_soft_dsc:.3f}), "
            f"{last.patches_per_second:.3g} patches/s, at most {seconds / 60:.1f} min left"
        )

    return report


def history_csv(history: Sequence[Epoch]) -> str:
    """A line an epoch; what was not measured is empty."""
    lines = [",".join(field.name for field in fields(Epoch))]
    lines += [",".join("" if math.isnan(value) else f"{value:.6g}" for value in astuple(epoch)) for epoch in history]
    return "\n".join(lines) + "\n"


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
