"""A prepared volume through the network: mtvlib's windows and stitching beside MONAI's `sliding_window_inference`.

The same network (params/paper.yml, random weights with logits as wide apart as a trained network's), the same windows
(128 x 128 x 32, 75 % axial overlap) and the same Gaussian weights. Each way runs in a process of its own, in
alternating order; a volume of noise, since time and memory do not depend on what the voxels show. From the repository's
root, on an idle machine:

    python -m benchmarks.inference [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import write_table
from mtvlib.inference import predict_maps, predict_probabilities
from mtvlib.network import Network, build
from mtvlib.params import read
from mtvlib.training import choose_device, network_config, use_processor

ROOT = Path(__file__).resolve().parents[1]
SLICES, LONG = 128, 400  # about the head and neck; a whole body in voxels of 2.5 mm would have 700
HEAD_GAIN = 40.0  # random logits are 0.01 apart: so that probabilities take all values between 0 and 1
OURS = "mtvlib"
MONAI = "MONAI"
WAYS = {  # name -> what it is
    OURS: "as `mtv predict` and a study do it",
    MONAI: "sliding_window_inference, one window at once, the network as it was built",
    "MONAI, 4 windows at once": "",
    "MONAI, channels last, memory kept": "with what mtvlib sets too: the weights' order, and glibc keeps freed memory",
    "MONAI, compiled": "torch.compile in channels last; its first volume holds the compilation",
}
MAPS = "mtvlib, labels and probability of a lesion only"


# --- one way, in its own process


def network(device: torch.device) -> Network:
    built = build(network_config(read(ROOT / "params" / "paper.yml")), 1).eval()
    with torch.no_grad():
        built.head.weight.mul_(HEAD_GAIN)
    return built.to(device)


def volume(slices: int) -> np.ndarray:
    return np.random.default_rng(0).random((2, 128, 128, slices), dtype=np.float32)


def predictor(way: str, built: Network, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Volume (C, x, y, z) to probabilities (K, x, y, z)."""
    if way in (OURS, MAPS):
        built = built.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if way == MAPS:
            return lambda inputs: predict_maps([built], inputs, 32, 8)["probability"]
        return lambda inputs: predict_probabilities([built], inputs, 32, 8)
    return monai_predictor(way, built, device)


def monai_predictor(way: str, built: Network, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    from monai.inferers import sliding_window_inference

    forward: Any = built
    if way != MONAI and "4 windows" not in way:
        forward = built.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if "compiled" in way:
        forward = torch.compile(forward, dynamic=False)
    at_once = 4 if "4 windows" in way else 1

    @torch.inference_mode()
    def predict(inputs: np.ndarray) -> np.ndarray:
        whole = torch.from_numpy(inputs)[None].to(device)
        found = sliding_window_inference(
            whole,
            (128, 128, 32),
            at_once,
            lambda windows: torch.softmax(forward(windows), 1),
            overlap=(0, 0, 0.75),
            mode="gaussian",
            sigma_scale=1 / math.sqrt(8 * math.log(2)),  # full width at half maximum = side, as mtvlib's
        )
        assert isinstance(found, torch.Tensor)
        return found[0].cpu().numpy()

    return predict


def one_way(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the first volume and of the next ones, and peak memory, MB: all, and above what was there before."""
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    if options.way in (OURS, MAPS) or "kept" in options.way or "compiled" in options.way:
        use_processor(options.threads)
    predict, inputs = predictor(options.way, network(device), device), volume(options.slices)
    before, seconds = peak_mb(device), []
    for _ in range(options.volumes):
        began = time.perf_counter()
        found = predict(inputs)
        seconds.append(time.perf_counter() - began)
    peak = peak_mb(device)
    if options.out:
        np.save(options.out, found.astype(np.float32))
    return {"first": seconds[0], "seconds": seconds[1:] or seconds, "peak_mb": peak, "above_mb": peak - before}


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- side by side


def in_process(way: str, options: argparse.Namespace, slices: int, volumes: int, out: Path | None = None) -> Any:
    command = [sys.executable, "-m", "benchmarks.inference", "--way", way, "--device", options.device]
    command += ["--threads", str(options.threads), "--slices", str(slices), "--volumes", str(volumes)]
    command += ["--out", str(out)] if out else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number in range(options.rounds):
        for way in WAYS if options.compile else [way for way in WAYS if "compiled" not in way]:
            out = folder / f"{way}.npy"
            result = in_process(way, options, SLICES, options.volumes, out)
            kept = found.setdefault(way, {"first": [], "seconds": [], "peak_mb": 0.0, "above_mb": 0.0, "out": out})
            kept["first"].append(result["first"])
            kept["seconds"] += result["seconds"]
            for name in ("peak_mb", "above_mb"):
                kept[name] = max(kept[name], result[name])
            print(f"round {number + 1}  {way}: {result['seconds'][0]:.1f} s, {result['above_mb']:.0f} MB", flush=True)
    return found


def speed_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    ours, reference = np.load(found[OURS]["out"]), found[MONAI]
    lines = [
        "| way | seconds a volume (range) | ratio to MONAI's | first volume, s | memory above libraries and weights, "
        "MB | ratio | whole process, MB | ratio | probabilities differ by up to |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    usual = statistics.median(reference["seconds"])
    for way, row in found.items():
        seconds, median = row["seconds"], statistics.median(row["seconds"])
        apart = "" if way == OURS else f"{np.abs(np.load(row['out']) - ours).max():.1e}"
        lines.append(
            f"| {way} | {median:.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | {median / usual:.2f} | "
            f"{statistics.median(row['first']):.1f} | {row['above_mb']:.0f} | "
            f"{row['above_mb'] / reference['above_mb']:.2f} | {row['peak_mb']:.0f} | "
            f"{row['peak_mb'] / reference['peak_mb']:.2f} | {apart} |"
        )
    return [*lines, "", *(f"- {way}: {what}." for way, what in WAYS.items() if what and way in found)]


def memory_lines(options: argparse.Namespace) -> list[str]:
    lines = ["| way | " + " | ".join(f"{slices} slices, MB" for slices in (SLICES, LONG)) + " |", "| --- | --- | --- |"]
    for way in (OURS, MAPS, MONAI):
        above = [in_process(way, options, slices, 1)["above_mb"] for slices in (SLICES, LONG)]
        print(f"{way}: {above[0]:.0f} MB, {above[1]:.0f} MB", flush=True)
        lines.append(f"| {way} | " + " | ".join(f"{value:.0f}" for value in above) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--volumes", type=int, default=3, help="in each process; the first is reported by itself")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one round, two volumes: a few minutes on two cores")
    parser.add_argument("--compile", action="store_true", help="also the compiled network; always on a graphics card")
    parser.add_argument("--slices", type=int, default=SLICES, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(one_way(options)))
        return
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.volumes = 2 if options.quick else options.volumes
    options.compile |= choose_device(options.device).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        found = compare(options, Path(folder))
        speed = speed_lines(found)
    where = f"processor, {options.threads} threads" if options.device == "cpu" else options.device
    windows = (SLICES - 32) // 8 + 1
    lines = [
        f"A prepared volume of 128 x 128 x {SLICES} voxels in {windows} windows, network of params/paper.yml, {where}.",
        f"Medians over {options.rounds} rounds of {max(1, options.volumes - 1)} volumes after a first one.",
        "",
        *speed,
        "",
        "Targets: 0.6 of MONAI's time, 0.7 of its memory, probabilities within 1e-4.",
        "",
        "## Memory and the length of the volume",
        "",
        "Above libraries and weights. Of these the inputs take 0.13 MB a slice, probabilities that are kept 0.19 MB.",
        "",
        *memory_lines(options),
    ]
    name = "inference" if choose_device(options.device).type == "cpu" else "inference_gpu"
    write_table(name, "Windows and stitching", [*lines, "", "Command: `python -m benchmarks.inference`."])


if __name__ == "__main__":
    main()
