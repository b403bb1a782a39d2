"""What a study was made from: versions, commit, seeds, hashes of inputs, parameters and weights, cost of each step."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import mtvlib
from mtvlib import cluster
from mtvlib.files import read_table, sha256, write_json
from mtvlib.study import Study

LIBRARIES = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "SimpleITK",
    "nibabel",
    "connected-components-3d",
    "lifelines",
    "plotly",
    "papermill",
    "snakemake",
)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that the numbers depend on."""
    return {"python": platform.python_version(), "mtvlib": mtvlib.__version__} | {
        name: metadata.version(name) for name in LIBRARIES
    }


def git_commit() -> str | None:
    """Commit of the clone that runs, `-dirty` added if files differ from it; None outside a clone."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():  # an installed copy may lie inside of somebody else's clone
        return None
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def params_hash(study: Study) -> str:
    """Hash of every parameter but the study's name and place."""
    values = study.params.model_dump(mode="json")
    chosen = {name: value for name, value in values.items() if name not in ("name", "studies", "cohort")}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def costs(study: Study) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of each step, from its log, and of jobs on a cluster all tries."""
    cluster.gather(study)
    found = {}
    for path in sorted(study.logs.glob("*.json")):
        if not path.name.endswith(".error.json"):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem] |= cluster.costs_of_jobs(cluster.read_jobs(study.logs, path.stem))
    return found


def write_manifest(study: Study) -> None:
    folds = range(study.params.folds)  # an earlier run may have left more
    inputs = read_table(study.volumes / "prepared.csv", dtype=str)
    results = sorted(study.results.glob("*"))
    write_json(
        study.folder / "manifest.json",
        {
            "study": study.params.name,
            "versions": versions(),
            "commit": git_commit(),
            "machine": {"processor": processor(), "system": platform.system(), "architecture": platform.machine()},
            "seed": study.params.seed,
            "params": {"sha256": params_hash(study), "values": study.params.model_dump(mode="json")},
            "inputs": {"cohort.csv": sha256(study.source), "images": inputs.to_dict("records")},
            "weights": {f"folds/{fold}": sha256(study.fold_folder(fold) / "weights.safetensors") for fold in folds},
            "results": {path.name: sha256(path) for path in results if path.is_file()},
            "steps": costs(study),
        },
    )
