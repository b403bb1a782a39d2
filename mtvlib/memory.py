"""How much memory this process may still take: of the computer's, and of what a cluster or a container grants."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60  # cgroups of the first version write a number near 2**63 for "no limit"


def free_bytes(root: Path = Path("/")) -> float:
    """Memory that could be had without swapping and without being killed; half of what there is if nothing is known.

    The least of what the computer has left, what each control group around this process leaves (Slurm, Kubernetes and
    containers limit by them), and what Slurm granted to the job on this node.
    """
    return max(0.0, min([_of_computer(root), *_of_groups(root), *_of_job()]))


def _of_computer(root: Path) -> float:
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
        return 1024 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _of_groups(root: Path) -> Iterator[float]:
    """What each control group with a limit leaves; files that it has cached would be dropped before it kills."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _of_group(root / "sys/fs/cgroup", path, ("memory.max", "memory.current", "file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
            yield from _of_group(root / "sys/fs/cgroup/memory", path, names)


def _of_group(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[float]:
    """Of a group and of those that it lies in, down to the mount, which in a container is the container's own group."""
    limit_name, used_name, cached_name = names
    place = mount / path.strip("/")
    for folder in (place, *place.parents):
        try:
            limit = (folder / limit_name).read_text(encoding="ascii").strip()
            used = float((folder / used_name).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            limit, used, stat = "max", 0.0, ""
        if limit != "max" and float(limit) < _UNLIMITED:
            cached = re.search(rf"^{cached_name} (\d+)$", stat, re.MULTILINE)
            yield float(limit) - used + (float(cached.group(1)) if cached else 0.0)
        if folder == mount:
            return


def _of_job() -> Iterator[float]:
    """Of what Slurm granted on this node (`--mem`), which it may watch without control groups; 0 is all of the node."""
    granted = os.environ.get("SLURM_MEM_PER_NODE", "")
    if granted.isdecimal() and int(granted):
        yield int(granted) * 2.0**20 - 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
