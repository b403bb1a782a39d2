import resource

import pytest

from mtvlib.memory import free_bytes

GB = 2**30


@pytest.fixture
def computer(tmp_path, monkeypatch):
    """Function that makes a root folder with these files, and a computer with 64 GB left."""
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)

    def of(**files):
        for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {64 * GB // 1024} kB\n", **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return of


def group(folder, limit, used, cached):
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\nfile {cached}\nfile_mapped 7\n",
    }


def test_without_limits_it_is_what_the_computer_has_left(computer):
    assert free_bytes(computer()) == 64 * GB
    assert free_bytes(computer(**{"proc/self/cgroup": "0::/user.slice\n"})) == 64 * GB


def test_the_tightest_group_counts_and_cached_files_are_not_lost(computer):
    """Own group: no limit. The job's: 16 GB, of which 6 are taken, 2 of these by cached files. The root has none."""
    job = "sys/fs/cgroup/system.slice/job_7"
    files = group(job, 16 * GB, 6 * GB, 2 * GB) | group(f"{job}/step_0", "max", 6 * GB, 2 * GB)
    assert free_bytes(computer(**{"proc/self/cgroup": "0::/system.slice/job_7/step_0\n"}, **files)) == 12 * GB


def test_in_a_container_its_group_is_the_mount(computer):
    root = computer(**{"proc/self/cgroup": "0::/\n"}, **group("sys/fs/cgroup", 8 * GB, 3 * GB, 0))
    assert free_bytes(root) == 5 * GB


def test_groups_of_the_first_version(computer):
    folder = "sys/fs/cgroup/memory/slurm/job_7"
    files = {
        "proc/self/cgroup": "5:devices:/x\n4:memory:/slurm/job_7\n0::/\n",
        f"{folder}/memory.limit_in_bytes": f"{4 * GB}\n",
        f"{folder}/memory.usage_in_bytes": f"{3 * GB}\n",
        f"{folder}/memory.stat": f"cache 1\ntotal_cache {GB}\n",
        "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/slurm/memory.usage_in_bytes": "1\n",
        "sys/fs/cgroup/memory/slurm/memory.stat": "",
    }
    assert free_bytes(computer(**files)) == 2 * GB


def test_what_slurm_granted_less_what_is_taken(computer, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "32768")
    taken = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert free_bytes(computer()) == pytest.approx(32 * GB - taken, abs=GB / 10)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # the whole node
    assert free_bytes(computer()) == 64 * GB


def test_a_group_that_is_full_leaves_nothing(computer):
    root = computer(**{"proc/self/cgroup": "0::/\n"}, **group("sys/fs/cgroup", GB, 2 * GB, 0))
    assert free_bytes(root) == 0
