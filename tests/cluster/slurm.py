"""A Slurm of its own on loopback: munge, controller and two nodes on this machine, as root, in one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
# Without cgroups: memory is sampled each second, and a job above its request is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill,UsePss
SlurmdParameters=config_overrides
KillWait=2
OverTimeLimit=0
# Ended jobs are asked about when the study is done; the default is to forget them after five minutes.
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs={cpus} RealMemory=6000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs={cpus} RealMemory=6000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES LLN=YES MaxTime=60 DefaultTime=10 DefMemPerCPU=500 State=UP
"""


def missing() -> str | None:
    """Why Slurm cannot be started here; None if it can."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    absent = [name for name in (*DAEMONS, *CLIENTS) if not _program(name)]
    return f"not installed (apt-get install slurmctld slurmd munge): {', '.join(absent)}" if absent else None


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(ready: Callable[[], object], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.2)


class Slurm:
    """The daemons and how to talk to them; `environment` is what a client needs to find this Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen] = {}
        port, first, second = free_ports(3)
        for name in ("state", "spool.node1", "spool.node2"):
            (folder / name).mkdir(parents=True)
        values = {"folder": folder, "port": port, "first": first, "second": second, "cpus": os.cpu_count()}
        (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname().split(".")[0], **values))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        conf = str(folder / "slurm.conf")
        self.environment = os.environ | {
            "SLURM_CONF": conf,
            "PATH": f"{self._srun_that_knows(conf)}:{os.environ['PATH']}",
        }

    def _srun_that_knows(self, conf: str) -> Path:
        """A folder with an srun that finds this Slurm: the plugin's jobs take SLURM_CONF away from the real one."""
        script = self.folder / "bin" / "srun"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nSLURM_CONF={conf}\nexport SLURM_CONF\nexec {_program("srun")} "$@"\n')
        script.chmod(0o755)
        return script.parent

    # --- daemons

    def start(self) -> None:
        self._start(
            "munged",
            *("--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={self.folder}/munge.key"),
            *(f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("pid", "log", "seed")),
        )
        wait_for((self.folder / "munge.socket").exists, 20, "munged does not answer")
        self.start_controller()
        for node in ("node1", "node2"):
            self._start("slurmd", "-D", "-N", node, name=node)
        wait_for(lambda: self.say("sinfo", "-h", "-o", "%T").split() == ["idle"], 60, "the nodes do not come up")

    def start_controller(self) -> None:
        self._start("slurmctld", "-D")
        wait_for(lambda: "UP" in self.say("scontrol", "ping"), 30, "slurmctld does not answer")

    def stop_controller(self) -> None:
        self._stop("slurmctld")

    def stop(self) -> None:
        self.say("scancel", "--user", "root")
        for name in ("node1", "node2", "slurmctld", "munged"):
            self._stop(name)

    def _start(self, program: str, *arguments: str, name: str = "") -> None:
        name = name or program
        output = open(self.folder / f"{name}.out", "a")  # noqa: SIM115
        path = _program(program)
        assert path is not None
        self.running[name] = subprocess.Popen(
            [path, *arguments], env=self.environment, stdout=output, stderr=output, start_new_session=True
        )

    def _stop(self, name: str) -> None:
        process = self.running.pop(name, None)
        if process:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- talking

    def say(self, *command: str) -> str:
        """A client's output; empty if it failed, as while the controller is away."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def jobs(self) -> list[dict[str, str]]:
        """Jobs of the controller, finished ones too: number, state, comment (rule and wildcards), node."""
        lines = self.say("squeue", "-h", "--states=all", "-o", "%i|%T|%k|%N|%m|%l").splitlines()
        names = ("job", "state", "rule", "node", "memory", "time")
        return [dict(zip(names, line.split("|"), strict=True)) for line in lines]

    def kill_job(self, job: str) -> None:
        """SIGKILL to every process of a job, as when a node's memory runs out."""
        self.say("scancel", "--signal=KILL", "--full", job)

    def allow_minutes(self, job: str, minutes: int) -> None:
        self.say("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
