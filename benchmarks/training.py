"""Training: a step with data beside the bare network's, patches a second and memory beside MONAI's, and the roofline.

The network is that of params/paper.yml, patches are the paper's 128 x 128 x 32 from volumes of 133 slices. MONAI trains
the same network by its recommended means: CacheDataset, RandSpatialCropd and DataLoader, on a graphics card with the
cache on the device and ThreadDataLoader; DiceCELoss, the same optimiser. Each way runs in a process of its own, in
alternating order. From the repository's root, on an idle machine:

    python -m benchmarks.training [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.measure import machine, write_table
from mtvlib import network
from mtvlib.checkpoints import Training
from mtvlib.network import build
from mtvlib.optimisation import make_optimizer
from mtvlib.params import AUGMENTATION, Params, read
from mtvlib.patching import PatchPool, patch_pool, window_starts
from mtvlib.training import (
    choose_device,
    network_config,
    start,
    step_gradient,
    train_epoch,
    use_processor,
)

ROOT = Path(__file__).resolve().parents[1]
SLICES = 133  # of the paper's mean field
FAST = {"precision": "bfloat16"}
AUGMENTED = {  # as params/modern.yml
    name: value
    for name, value in read(ROOT / "params" / "modern.yml").model_dump().items()
    if name in AUGMENTATION or name == "flip"
}
WAYS: dict[str, dict[str, Any]] = {  # name -> changes of params/paper.yml
    "mtvlib, float32": {},
    "mtvlib, bfloat16": FAST,
    "mtvlib, bfloat16, augmented": FAST | AUGMENTED,
    "mtvlib, bfloat16, checkpoint_activations": FAST | {"checkpoint_activations": True},
    "mtvlib, bfloat16, compiled": FAST | {"compile": True},
    "MONAI, float32": {},
    "MONAI, bfloat16": {"precision": "bfloat16"},
    "MONAI, bfloat16, memory kept": {"precision": "bfloat16"},
}
PAPER_PATCHES, PAPER_PATIENTS, PAPER_FOLDS, PAPER_EPOCHS = 9535, 698, 5, 200


def volumes(patients: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Noise with two lesions: time and memory do not depend on what the voxels show."""
    for number in range(patients):
        random = np.random.default_rng(number)
        labels = np.zeros((128, 128, SLICES), np.uint8)
        labels[50:60, 60:70, 60:66], labels[80:86, 40:46, 30:34] = 1, 2
        yield f"P{number}", random.random((2, *labels.shape), dtype=np.float32), labels


def paper(batch: int, device: str, threads: int, **changes: Any) -> Params:
    params = read(ROOT / "params" / "paper.yml").model_dump()
    own = {"batch_size": batch, "device": device, "threads": threads}
    return Params(**(params | own | changes))


# --- one way, in its own process


def ours(params: Params, steps: int, patients: int) -> tuple[list[float], list[float]]:
    """Seconds of each step with data, and of each bare step between them; after the first, which warms up."""
    device = choose_device(params.device)
    depth = params.patch_shape[2]
    pool = patch_pool(volumes(patients), depth, params.patch_stride, device)
    training = start(params, 0, device)
    with_data: list[float] = []
    bare: list[float] = []
    for number in range(steps + 1):
        seconds = timed(device, lambda number=number: one_step(training, pool, params, number))
        alone = timed(device, bare_step(training, pool, params))
        if number:
            with_data.append(seconds)
            bare.append(alone)
    return with_data, bare


def one_step(training: Training, pool: PatchPool, params: Params, number: int) -> None:
    """A step of a real epoch; the look at the losses that follows it costs what fifty steps share in a real one."""
    train_epoch(training, pool, params.model_copy(update={"steps_per_epoch": 1, "seed": number}), 0)


def bare_step(training: Training, pool: PatchPool, params: Params) -> Callable[[], None]:
    inputs, labels = random_batch(params, pool.device)

    def step() -> None:
        step_gradient(training, inputs, labels, params)
        training.optimizer.step()

    return step


def random_batch(params: Params, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (params.batch_size, *params.patch_shape)
    inputs = torch.rand(shape[0], len(params.channels), *shape[1:], device=device)
    inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
    return inputs, torch.randint(0, 3, shape, device=device)


def all_kept() -> Any:
    """Within it the network keeps for the gradient whatever autograd asks for, as networks do elsewhere."""
    own = network._normalised_conv
    return mock.patch.object(network, "_normalised_conv", lambda norm, conv, x, keep=False: own(norm, conv, x, True))


def theirs(params: Params, steps: int, patients: int) -> list[float]:
    """Seconds of each step of the loop that MONAI's tutorials recommend."""
    from monai.data import CacheDataset, DataLoader, ThreadDataLoader, set_track_meta
    from monai.losses import DiceCELoss
    from monai.transforms import Compose, EnsureTyped, RandSpatialCropd

    set_track_meta(False)
    device = choose_device(params.device)
    keys = ["image", "label"]
    data = [{"image": x, "label": y[None]} for _, x, y in volumes(patients)]
    data = data * -(-params.batch_size // patients)  # an epoch must fill a batch
    place: dict[str, Any] = {"device": device} if device.type == "cuda" else {}
    steps_of = [EnsureTyped(keys, **place), RandSpatialCropd(keys, params.patch_shape, random_size=False)]
    dataset = CacheDataset(data, Compose(steps_of), cache_rate=1.0, num_workers=2, progress=False)
    loader: Any
    if device.type == "cuda":
        loader = ThreadDataLoader(dataset, batch_size=params.batch_size, shuffle=True, num_workers=0, drop_last=True)
    else:
        more: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
        loader = DataLoader(dataset, batch_size=params.batch_size, shuffle=True, drop_last=True, **more)
    training = start(params, 0, device)
    plain = training.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    bfloat16 = params.precision == "bfloat16"
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) <= steps:
        for batch in loader:
            inputs, labels = batch["image"].to(device), batch["label"].to(device)
            training.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = plain(inputs)
            loss_of(logits.float(), labels).backward()
            training.optimizer.step()
            wait(device)
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            if len(seconds) > steps:
                break
    return seconds[1:]


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory_mb(field: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[field].split()[0]) / 1024


def run_way(name: str, params: Params, steps: int, patients: int) -> dict[str, Any]:
    """Measure a way in this process: seconds of its steps, and the memory above what the libraries take."""
    torch.set_num_threads(params.threads)
    if not name.startswith("MONAI") or "memory kept" in name:
        use_processor(params.threads)
    torch.backends.cudnn.benchmark = True
    if name.startswith("MONAI"):
        from monai import data, losses, transforms  # noqa: F401
    before, bare = memory_mb("VmRSS"), list[float]()
    if name.startswith("MONAI"):
        with all_kept():
            seconds = theirs(params, steps, patients)
    else:
        seconds, bare = ours(params, steps, patients)
    device = choose_device(params.device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else memory_mb("VmHWM") - before
    return {"seconds": seconds, "bare": bare, "peak_mb": peak}


# --- the roofline


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write if no cache helps them; a view moves none."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            tensors = [one for one in tree_leaves((args, kwargs, found)) if isinstance(one, Tensor)]
            self.moved[str(operation).split(".")[1]] += sum(one.nbytes for one in tensors)
        return found


def roofline(params: Params, rounds: int) -> dict[str, Any]:
    """Operations and bytes of a step of one patch, the machine's ceilings, and where a step's time goes."""
    from torch.utils.flop_counter import FlopCounterMode

    use_processor(params.threads)
    device = choose_device(params.device)
    training = start(params, 0, device)
    inputs, labels = random_batch(params, device)

    def step() -> None:
        step_gradient(training, inputs, labels, params)
        training.optimizer.step()

    step()
    seconds = statistics.median(timed(device, step) for _ in range(rounds))
    with FlopCounterMode(display=False) as counter:
        step()
    with Traffic() as traffic:
        step()
    bfloat16 = params.precision == "bfloat16"
    return {
        "seconds": seconds,
        "flops": counter.get_total_flops(),
        "bytes": sum(traffic.moved.values()),
        "flops_s": arithmetic_peak(device, torch.bfloat16 if bfloat16 else torch.float32),
        "bytes_s": copy_peak(device),
        "share": shares(step, device),
    }


def arithmetic_peak(device: torch.device, kind: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product or convolution, the best of several.

    Both, since they come from different libraries, and on some processors the one for products is the slower.
    """
    n, channels, side = (8192, 256, 64) if device.type == "cuda" else (2048, 128, 32)
    one, other = torch.rand(n, n, device=device).to(kind), torch.rand(n, n, device=device).to(kind)
    product = 2 * n**3 / min(timed(device, lambda: torch.mm(one, other)) for _ in range(6))
    place: dict[str, Any] = {"dtype": kind, "device": device, "memory_format": torch.channels_last_3d}
    voxels = torch.ones(1, channels, side, side, side).to(**place)
    weights = torch.ones(channels, channels, 3, 3, 3).to(**place)
    with torch.no_grad():
        seconds = min(timed(device, lambda: torch.conv3d(voxels, weights)) for _ in range(6))
    return max(product, 2 * 27 * channels**2 * (side - 2) ** 3 / seconds)


def copy_peak(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy far larger than any cache, the best of several."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(device, lambda: target.copy_(source)) for _ in range(6))


KINDS = (
    ("convolution", "convolutions"),
    ("group_norm", "normalisation"),
    ("batch_norm", "normalisation"),  # instance normalisation of one patch
    ("leaky_relu", "activation"),
    ("pool", "pooling"),
    ("adadelta", "optimiser"),
    ("_foreach", "optimiser"),
    ("copy", "copies"),
    ("softmax", "loss"),
    ("nll", "loss"),
)


def shares(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Share of a step's time by kind of operation."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        wait(device)
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = next((kind for word, kind in KINDS if word in event.key), "the rest")
        spent[kind] += own
    total = sum(spent.values())
    return {kind: time_us / total for kind, time_us in spent.most_common()}


# --- memory of the paper's batch


class Living(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self.hold(one)
        return found


def peak_of_batch(params: Params) -> float:
    """Bytes that a step of the whole batch takes at its peak, by following every tensor of a step without numbers.

    Weights, gradients, optimiser, activations and the batch are in it; what a library takes for itself is not.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), Living() as living:
        built = build(network_config(params), 0)
        built.checkpoint_activations = params.checkpoint_activations
        training = Training(built, make_optimizer(built, params), None, [], 0, {})
        inputs, labels = random_batch(params, torch.device("cpu"))
        for _ in range(2):  # from the second step on the optimiser has its state
            step_gradient(training, inputs, labels, params)
            training.optimizer.step()
        return living.peak


MEMORY: dict[str, dict[str, Any]] = {  # name -> changes of params/paper.yml, whose batch is 16
    "as it is": {},
    "bfloat16": {"precision": "bfloat16"},
    "checkpoint_activations": {"checkpoint_activations": True},
    "accumulate: 4": {"accumulate": 4},
    "accumulate: 16": {"accumulate": 16},
    "accumulate: 4, checkpoint_activations": {"accumulate": 4, "checkpoint_activations": True},
    "bfloat16, accumulate: 4": {"precision": "bfloat16", "accumulate": 4},
}


# --- tables


def subprocess_way(name: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--way", name, "--device", options.device]
    command += ["--batch", str(options.batch), "--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every way once a round, so that a slow minute of the machine hits all of them."""
    device = choose_device(options.device)
    names = [name for name in WAYS if options.compile or "compiled" not in name]
    names = [name for name in names if device.type == "cpu" or "memory kept" not in name]  # of glibc's, not the card's
    found: dict[str, dict[str, Any]] = {}
    for number in range(options.rounds):
        for name in names:
            result = subprocess_way(name, options)
            if "error" in result:
                print(f"{name}: {result['error']}", flush=True)
                found.setdefault(name, result)
                continue
            kept = found.setdefault(name, {"seconds": [], "bare": [], "peak_mb": 0.0})
            kept["seconds"] += result["seconds"]
            kept["bare"] += result["bare"]
            kept["peak_mb"] = max(kept["peak_mb"], result["peak_mb"])
            median = statistics.median(result["seconds"])
            print(f"round {number + 1}  {name}: {median:.2f} s a step, {result['peak_mb']:.0f} MB", flush=True)
    return found


def speed_lines(found: dict[str, dict[str, Any]], batch: int) -> list[str]:
    reference = {"float32": found["MONAI, float32"], "bfloat16": found["MONAI, bfloat16"]}
    lines = [
        "| way | seconds a step (range) | patches a second | ratio to MONAI's, same precision | with data / bare "
        "| peak memory, MB | ratio to MONAI's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        if "error" in one:
            lines.append(f"| {name} | failed: {one['error']} | | | | | |")
            continue
        peer = reference["bfloat16" if "bfloat16" in name else "float32"]
        peer = one if "error" in peer else peer
        median = statistics.median(one["seconds"])
        spread = f"{min(one['seconds']):.2f}–{max(one['seconds']):.2f}"
        ratios = [statistics.median(peer["seconds"]) / median, one["peak_mb"] / peer["peak_mb"]]
        bare = f"{median / statistics.median(one['bare']):.3f}" if one["bare"] else ""
        lines.append(
            f"| {name} | {median:.2f} ({spread}) | {batch / median:.2f} | {ratios[0]:.2f} | {bare} "
            f"| {one['peak_mb']:.0f} | {ratios[1]:.2f} |"
        )
    return lines


def roofline_lines(found: dict[str, dict[str, Any]], batch: int) -> list[str]:
    lines = [
        "| way | GFLOP a patch | GB moved a patch | ceiling, GFLOP/s | ceiling, GB/s | arithmetic alone, s | memory "
        "alone, s | step, s | fraction of the ceiling | largest terms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        arithmetic, memory = one["flops"] / one["flops_s"], one["bytes"] / one["bytes_s"]
        largest = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in list(one["share"].items())[:3])
        lines.append(
            f"| {name} | {one['flops'] / batch / 1e9:.0f} | {one['bytes'] / batch / 1e9:.1f} "
            f"| {one['flops_s'] / 1e9:.0f} | {one['bytes_s'] / 1e9:.1f} | {arithmetic:.2f} | {memory:.2f} "
            f"| {one['seconds']:.2f} | {max(arithmetic, memory) / one['seconds']:.2f} | {largest} |"
        )
    return lines


def busy_processors(seconds: float = 2.0) -> float:
    """Processors at work on average over so many seconds, in which this process only waits."""

    def idle() -> float:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")

    before = idle()
    time.sleep(seconds)
    return max(0.0, (os.cpu_count() or 1) - (idle() - before) / seconds)


def study_hours(seconds_a_patch: float) -> float:
    """Training of the paper's five folds: 64 % of 9535 patches an epoch, and windows side by side of 16 % to validate.

    A validated window costs a third of a trained one: the forward pass alone.
    """
    trained = 0.64 * PAPER_PATCHES
    validated = 0.16 * PAPER_PATIENTS * len(window_starts(SLICES, 32, 32)) / 3
    return PAPER_FOLDS * PAPER_EPOCHS * (trained + validated) * seconds_a_patch / 3600


def hours_lines(found: dict[str, dict[str, Any]], batch: int) -> list[str]:
    lines = ["| way | hours for five folds x 200 epochs x 698 patients |", "| --- | --- |"]
    for name, one in found.items():
        if "error" not in one:
            lines.append(f"| {name} | {study_hours(statistics.median(one['seconds']) / batch):.0f} |")
    return lines


def memory_lines() -> list[str]:
    lines = [
        "| parameters beside the paper's | peak of a step of 16 patches, GB | if all were kept | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for name, changes in MEMORY.items():
        params = paper(16, "cpu", 1, **changes)
        peak = peak_of_batch(params)
        with all_kept():
            kept = peak_of_batch(params)
        print(f"{name}: {peak / 2**30:.1f} GB, with all kept {kept / 2**30:.1f} GB", flush=True)
        cells = "" if set(changes) - {"precision"} else f"{kept / 2**30:.1f} | {peak / kept:.2f}"
        lines.append(f"| {name} | {peak / 2**30:.1f} | {cells or ' | '} |")
    return lines


def report(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"processor, {options.threads} threads"
    load = busy_processors()
    found = compare(options)
    ways = {name: WAYS[name] for name in ("mtvlib, float32", "mtvlib, bfloat16")}
    roofs = {
        name: roofline(paper(options.batch, options.device, options.threads, **changes), options.steps)
        for name, changes in ways.items()
    }
    lines = [
        f"Network and patches of params/paper.yml, batches of {options.batch}, on: {where}. Medians over "
        f"{options.rounds} rounds of {options.steps} steps after a first one; each way in a process of its own.",
        f"Processors busy before: {load:.1f} (of an idle machine: below 0.2; else the numbers mean little).",
        "Memory: " + ("allocated on the device." if device.type == "cuda" else "above what the libraries take."),
        "",
        *speed_lines(found, options.batch),
        "",
        "Targets: with data / bare at most 1.05, twice MONAI's patches a second, 0.8 of its memory. On a processor the "
        "network is nearly all of a step, so the ways of feeding it cannot differ by much: the order of the voxels in "
        "memory, the normalisation's gradient and the precision make the difference. "
        '"Memory kept": with what mtvlib sets too, that glibc keeps freed memory: a third of a step\'s time in float32 '
        "is saved so, but what it keeps lies in pieces, so that a process on a processor takes up to twice what its "
        "tensors do (their own peak: below).",
        "",
        "## Roofline",
        "",
        "Operations as PyTorch counts them; bytes if no cache helped; ceilings measured on this device: the faster of "
        "a large matrix product and a large convolution in the same precision, and a copy.",
        "",
        *roofline_lines(roofs, options.batch),
        "",
        "## The paper's study",
        "",
        "Extrapolated from the steps above: 6102 patches an epoch and a third of a step for each window of validation.",
        "",
        *hours_lines(found, options.batch),
        "",
        "## Memory of the paper's batch",
        "",
        "Computed, not measured: every tensor of a step of 16 patches is followed without computing its numbers. A "
        "card needs a little more for its libraries.",
        "",
        *memory_lines(),
        "",
        f"Command: `python -m benchmarks.training{' --device cuda' if device.type == 'cuda' else ''}"
        f"{' --quick' if options.quick else ''}{' --compile' if options.compile else ''}`.",
    ]
    write_table("training" if device.type == "cpu" else "training_gpu", "Training", lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--batch", type=int, help="patches of a step; 16 on a graphics card, 2 on a processor")
    parser.add_argument("--steps", type=int, default=None, help="measured steps of a round")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="batches of 1, one round: a few minutes on two cores")
    parser.add_argument("--compile", action="store_true", help="also the compiled network; always on a graphics card")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cuda = choose_device(options.device).type == "cuda"
    options.batch = options.batch or (16 if cuda else 1 if options.quick else 2)
    options.steps = options.steps or (20 if cuda else 3 if options.quick else 6)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.compile |= cuda
    if options.way:
        params = paper(options.batch, options.device, options.threads, **WAYS[options.way])
        print(json.dumps(run_way(options.way, params, options.steps, 8 if cuda else 3)))
    else:
        print(machine())
        report(options)


if __name__ == "__main__":
    main()
