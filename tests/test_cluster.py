import json

import pytest

from mtvlib import cluster
from mtvlib.errors import InputError
from mtvlib.files import write_json
from mtvlib.params import Params
from mtvlib.study import Study

SACCT = """TIMEOUT|3600|01:58:11.5||0|2
TIMEOUT|3601|01:58:11.5|2048000K|7200000|2
"""
CONTROLLER = "JobId=7 JobName=x JobState=TIMEOUT Reason=TimeLimit RunTime=1-02:03:04 TimeLimit=1-02:03:00 NumCPUs=2"


@pytest.fixture
def study(tmp_path):
    return Study(Params(name="x", studies=str(tmp_path), folds=2))


@pytest.fixture
def slurm(monkeypatch):
    """Function that sets what Slurm's programs answer, by program; one that is left out fails."""

    def answer(**answers):
        monkeypatch.setattr(cluster, "_run", lambda program, *_: answers.get(program))

    return answer


def test_the_profile_tells_where_steps_run(tmp_path, project):
    assert cluster.executor_of(project / "profiles" / "slurm") == "slurm"
    assert cluster.executor_of(project / "profiles" / "local") is None
    assert cluster.executor_of(None) is None
    with pytest.raises(InputError, match=r"has no config.yaml"):
        cluster.executor_of(tmp_path)
    (tmp_path / "config.yaml").write_text("executor: [")
    with pytest.raises(InputError, match="cannot be read"):
        cluster.executor_of(tmp_path)


def test_the_preparation_is_spread_over_jobs_as_the_profile_says(tmp_path, project):
    assert [cluster.batches(project / "profiles" / "slurm", n) for n in (1, 50, 51, 10_000)] == [1, 1, 2, 200]
    assert cluster.batches(tmp_path, 101) == 3
    (tmp_path / "mtv.yaml").write_text("patients_per_job: 0")
    with pytest.raises(InputError, match="from 1 on"):
        cluster.batches(tmp_path, 10)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30:00", 30), ("2:00:00", 120), ("7-00:00:00", 10_080), ("1-02:03:04", 1563), ("infinite", None)],
)
def test_time_limits_are_read_as_slurm_writes_them(text, minutes):
    assert cluster.minutes_of(text) == minutes


def test_the_partition_that_jobs_go_to_sets_the_limits():
    nodes = "short*|1:00:00|(null)|64000\ngpu|2-00:00:00|gpu:a100:4|512000\ngpu|2-00:00:00|gpu:a100:4|256000\n"
    assert cluster._limits(nodes, None) == {"most_minutes": 60, "most_mb": 64_000, "gpus": 1}
    assert cluster._limits(nodes, "gpu") == {"most_minutes": 2880, "most_mb": 512_000, "gpus": 1}
    assert cluster._limits("main*|infinite|(null)|8000+\n", None) == {"most_mb": 8000, "gpus": 0}
    assert cluster._limits("", None) == {}


def test_a_refused_job_is_told_in_slurms_words():
    said = "sbatch: error: Memory\nsbatch: error: too much"
    log = f"x\n    message: SLURM sbatch failed. The error message was '{said}'.\n    sbatch call:"
    assert cluster.refusal(log) == "Slurm refused a job: Memory too much"
    assert cluster.refusal("SLURM run ID: x") is None


def test_without_accounting_the_controller_is_asked(tmp_path, study, slurm, monkeypatch):
    (tmp_path / "config.yaml").write_text("executor: slurm")
    monkeypatch.setattr(cluster.shutil, "which", lambda name: f"/usr/bin/{name}")
    slurm()
    assert cluster.arguments("slurm", tmp_path, study)[-2:] == ["--slurm-status-command", "squeue"]
    slurm(sacct="")
    assert "squeue" not in cluster.arguments("slurm", tmp_path, study)


def test_a_computer_without_slurm_is_told(tmp_path, study, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"knows no Slurm.*login node"):
        cluster.arguments("slurm", tmp_path, study)


def test_accounting_tells_a_jobs_end(slurm):
    slurm(sacct=SACCT, scontrol=CONTROLLER)
    told = cluster.asked("7")
    assert told == {"state": "TIMEOUT", "seconds": 3600.0, "peak_memory_mb": 2000, "energy_joules": 7_200_000}


def test_the_controller_tells_a_jobs_end_where_there_is_no_accounting(slurm):
    slurm(scontrol=CONTROLLER)
    assert cluster.asked("7") == {"state": "TIMEOUT", "seconds": 86400.0 + 2 * 3600 + 3 * 60 + 4}
    slurm(scontrol=CONTROLLER.replace("TIMEOUT", "RUNNING"))
    assert cluster.asked("7") == {}
    slurm()
    assert cluster.asked("7") == {}


def test_a_job_leaves_what_it_has_cost_and_a_killed_one_its_beginning(study, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    with cluster.recorded(study.logs, "evaluation"):
        (begun,) = cluster.read_jobs(study.logs, "evaluation")
        assert {name: begun[name] for name in ("job", "cpus", "gpus")} == {"job": "7", "cpus": 4, "gpus": 1}
        assert "seconds" not in begun
    (ended,) = cluster.read_jobs(study.logs, "evaluation")
    assert ended["done"]
    assert ended["peak_memory_mb"] > 0


def test_tries_of_one_run_stand_together_and_those_before_a_success_go(study, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RuntimeError), cluster.recorded(study.logs, "evaluation"):
        raise RuntimeError
    for job in ("8", "9"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        with cluster.recorded(study.logs, "evaluation"):
            jobs = [one["job"] for one in cluster.read_jobs(study.logs, "evaluation")]
        assert jobs == {"8": ["7", "8"], "9": ["9"]}[job]


def test_on_one_computer_no_job_is_written_down(study, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with cluster.recorded(study.logs, "evaluation") as cost:
        pass
    assert cost["seconds"] >= 0
    assert not (study.logs / "jobs").exists()


def test_what_slurm_knows_is_added_and_what_the_job_has_told_stays(study, slurm):
    jobs = [{"job": "7", "cpus": 2, "gpus": 1}, {"job": "8", "cpus": 2, "gpus": 1, "seconds": 1800.0, "done": True}]
    write_json(study.logs / "jobs" / "2_train_fold_1.json", jobs)
    slurm(scontrol=CONTROLLER.replace("1-02", "01"))
    cluster.gather(study)
    killed, ended = json.loads((study.logs / "jobs" / "2_train_fold_1.json").read_text())
    assert killed == {"job": "7", "cpus": 2, "gpus": 1, "state": "TIMEOUT", "seconds": 3784.0}
    assert ended["seconds"] == 1800.0


def test_time_limits_are_told_from_other_ends(study, slurm):
    write_json(study.logs / "jobs" / "2_train_fold_1.json", [{"job": "7", "state": "FAILED"}, {"job": "8"}])
    slurm(scontrol=CONTROLLER)
    assert cluster.timeouts(study.logs, "2_train_fold_1", 3) == 1
    assert cluster.timeouts(study.logs, "2_train_fold_1", 1) == 0


def test_costs_are_of_what_was_reserved_in_all_tries():
    jobs = [
        {"job": "7", "cpus": 4, "gpus": 1, "seconds": 3600.0, "energy_joules": 3_600_000},
        {"job": "8", "cpus": 4, "gpus": 1, "seconds": 1800.0},
    ]
    assert cluster.costs_of_jobs(jobs) == {"jobs": 2, "cpu_hours": 6.0, "gpu_hours": 1.5, "energy_kwh": 1.0}
    assert cluster.costs_of_jobs([]) == {}


def test_what_is_left_of_a_run_is_cancelled_by_its_name(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(cluster, "_run", lambda *command: called.append(command))
    (tmp_path / "log").write_text("Using profile x\nSLURM run ID: 5d5e-64\nJob 1 has been submitted\n")
    cluster.cancel(tmp_path / "log")
    cluster.cancel(tmp_path / "none")
    assert called == [("scancel", "--name", "5d5e-64")]
