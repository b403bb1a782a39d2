"""Stands in for kubectl in tests: jobs are processes of this computer, and what is known of them lies in a folder.

It understands what `mtvlib.kubernetes` says, no more. A file `<step>.fate` in the folder holds the reason for which the
first try of a step's job is killed, and the file whose appearance is the time for it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

PLACE = Path(os.environ["FAKE_KUBERNETES"])
NODES = {"items": [{"status": {"allocatable": {"memory": "6000Mi", "cpu": "2"}}}]}


def create():
    job = json.load(sys.stdin)
    name = job["metadata"]["name"]
    write(name, {"job": job, "created": time.time(), "status": {}, "pod": {"phase": "Pending"}, "pid": None})
    own = [sys.executable, __file__, "_run", name]
    subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    return f"job.batch/{name}"


def run_pod(name):
    record, began = read(name), now()
    container = record["job"]["spec"]["template"]["spec"]["containers"][0]
    environment = os.environ | {one["name"]: one["value"] for one in container["env"]}
    with open(PLACE / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            container["command"], env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    write(name, record | {"pid": process.pid, "pod": {"phase": "Running"}})
    reason = killed(process, PLACE / f"{name.removeprefix('mtv-').rpartition('-')[0]}.fate")
    failed = process.wait() != 0
    status = {"conditions": [{"type": "Failed", "status": "True"}]} if failed else {"succeeded": 1}
    ended = {"reason": reason, "startedAt": began, "finishedAt": now()}
    pod = {"phase": "Failed" if failed else "Succeeded", "containerStatuses": [{"state": {"terminated": ended}}]}
    write(name, (read(name) or record) | {"pid": None, "status": status, "pod": pod})


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def killed(process, fate):
    if not fate.exists():
        return None
    reason, when = fate.read_text().split()
    fate.unlink()
    while process.poll() is None and not Path(when).exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return reason


def delete(names):
    for name in names:
        record = read(name)
        if record and not record.get("deleted"):
            write(name, record | {"deleted": True})
            if record["pid"]:
                os.killpg(record["pid"], signal.SIGKILL)


def read(name):
    file = PLACE / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def write(name, record):
    part = PLACE / f"{name}.part{os.getpid()}"
    part.write_text(json.dumps(record))
    part.rename(PLACE / f"{name}.json")


def main(words):
    names = [word for word in words[2:] if word.startswith("mtv-") and "=" not in word]
    label = next((word.split("=") for word in words if "=" in word and not word.startswith("--")), None)
    if words[0] == "_run":
        return run_pod(words[1])
    if words[0] == "create":
        return print(create())
    if words[:2] == ["get", "nodes"]:
        return print(json.dumps(NODES))
    if words[:2] == ["get", "job"]:
        record = read(names[0])
        return print("" if record is None or record.get("deleted") else json.dumps({"status": record["status"]}))
    if words[:2] == ["get", "pods"]:
        record = read(label[1])
        return print(json.dumps({"items": [] if record is None else [{"status": record["pod"]}]}))
    if words[0] == "delete":
        marked = [file.stem for file in PLACE.glob("*.json") if label and label[1] in file.read_text()]
        return delete([*names, *marked])
    sys.exit(f"error: this stand-in knows no {' '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[1:])
