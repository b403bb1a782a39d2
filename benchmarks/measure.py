"""Whole commands side by side: wall-clock seconds and peak memory, in alternating order, as medians and ratios."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from mtvlib.manifest import processor

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Runs:
    """What one command took, run after run."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.1f}–{max(self.seconds):.1f}"


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds and peak memory (MB, of the largest process) of a command; a failure shows what it printed."""
    watch = [sys.executable, __file__, *command]
    began = time.perf_counter()
    done = subprocess.run(watch, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return seconds, float(done.stdout.splitlines()[-1])


def mtv(*arguments: object) -> tuple[float, float]:
    """Seconds and peak memory, MB, of a command."""
    return run([sys.executable, "-m", "mtvlib.cli", *map(str, arguments)])


def spent(record: Path, seconds: float) -> float:
    """Seconds of the run and of those before it that were stopped."""
    seconds += json.loads(record.read_text(encoding="utf-8")) if record.exists() else 0
    record.write_text(json.dumps(seconds), encoding="utf-8")
    return seconds


def costs_of_steps(study: Path) -> dict[str, dict[str, float]]:
    """`seconds`, `cpu_seconds` and `peak_memory_mb` of each step of a study, by its name."""
    logs = [path for path in (study / "logs").glob("*.json") if not path.name.endswith(".error.json")]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in logs}


def together(steps: dict[str, dict[str, float]], prefixes: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of the steps that begin so, added up, and the largest peak memory of one, MB."""
    chosen = [cost for name, cost in steps.items() if name.startswith(prefixes)]
    return sum(cost["seconds"] for cost in chosen), max((cost["peak_memory_mb"] for cost in chosen), default=0)


def side_by_side(commands: Mapping[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, Runs]:
    """Every command once a round, so that a slow minute of the machine hits all of them."""
    found = {name: Runs() for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            seconds, peak_mb = command()
            found[name].seconds.append(seconds)
            found[name].peak_mb.append(peak_mb)
            print(f"round {number + 1} of {rounds}  {name}: {seconds:.1f} s, {peak_mb:.0f} MB", flush=True)
    return found


def machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "SimpleITK"))
    size = f"{len(os.sched_getaffinity(0))} cores, {memory_gb:.0f} GB"
    return f"{processor()}, {size}, {platform.system()}; Python {platform.python_version()}, {versions}"


def write_table(name: str, title: str, lines: Sequence[str]) -> None:
    text = "\n".join([f"# {title}", "", *lines, "", f"Machine: {machine()}.", ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":  # the watcher: runs a command and prints the peak memory of its largest process last
    code = subprocess.run(sys.argv[1:], check=False).returncode
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    sys.exit(code)
