"""The image's recipe and the way it is run on Kubernetes, as far as they can be read: no image is built here."""

import re
import shlex
import tomllib

import pytest
import yaml


@pytest.fixture(scope="module")
def recipe(project):
    """Instructions of the Containerfile, their lines joined: name and arguments."""
    text = (project / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def arguments(recipe, name):
    return [argument for instruction, argument in recipe if instruction == name]


def test_the_image_has_condas_python(recipe, project):
    conda = yaml.safe_load((project / "environment.yml").read_text())
    wanted = next(one.removeprefix("python=") for one in conda["dependencies"] if str(one).startswith("python="))
    (base,) = arguments(recipe, "FROM")
    assert re.fullmatch(rf"docker\.io/library/python:{re.escape(wanted)}-slim-\w+", base)


def test_everything_copied_is_there_and_everything_packaged_is_copied(recipe, project):
    own = [argument for argument in arguments(recipe, "COPY") if not argument.startswith("--from")]
    copied = {name for argument in own for name in argument.split()[:-1]}
    assert [name for name in copied if not (project / name).exists()] == []
    build = tomllib.loads((project / "pyproject.toml").read_text())
    wheel = build["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"], build["project"]["readme"], "LICENSE"} <= copied


def test_every_installation_is_by_the_tested_versions(recipe, project):
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    calls = [call for line in arguments(recipe, "RUN") for call in line.split("&&")]
    installs = [call for call in calls if "pip install" in call]
    assert len(installs) == len(calls) == 2
    assert all("-c constraints.txt" in call for call in installs)
    assert set(re.search(r"\.\[(.*?)\]", installs[-1]).group(1).split(",")) <= set(extras)


def test_the_job_of_kubernetes_runs_a_study_in_the_image_on_the_claimed_volume(recipe, project):
    job = yaml.safe_load((project / "docs" / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    named = re.findall(r"podman build .*-t (\S+)", (project / "Containerfile").read_text())
    assert container["image"] in named
    assert arguments(recipe, "ENTRYPOINT") == ['["mtv"]']
    assert shlex.join(container["args"]) == "run params/my_study.yml"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["work"] == container["workingDir"] == arguments(recipe, "WORKDIR")[-1]
    assert job["spec"]["backoffLimit"] > 0
    assert pod["restartPolicy"] == "Never"


def test_the_jobs_of_a_study_share_volume_image_and_rights(recipe, project):
    objects = list(yaml.safe_load_all((project / "docs" / "kubernetes_jobs.yaml").read_text()))
    account, role, binding, run = (
        next(one for one in objects if one["kind"] == kind) for kind in ("ServiceAccount", "Role", "RoleBinding", "Job")
    )
    template = yaml.safe_load((project / "profiles" / "kubernetes" / "job.yaml").read_text())
    watcher, step = (job["spec"]["template"]["spec"] for job in (run, template))
    assert watcher["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    granted = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert granted["jobs"] >= {"create", "get", "delete", "list", "deletecollection"}  # delete by label
    assert granted["pods"] >= {"list"}
    (one,), (other,) = watcher["containers"], step["containers"]
    assert one["image"] == other["image"]
    assert one["volumeMounts"][0] == other["volumeMounts"][0]
    assert watcher["volumes"][0] == step["volumes"][0]
    assert one["workingDir"] == one["volumeMounts"][0]["mountPath"] == arguments(recipe, "WORKDIR")[-1]
    assert shlex.join(one["args"]) == "run params/my_study.yml --profile my_kubernetes"
    assert [argument for argument in arguments(recipe, "COPY") if "kubectl" in argument] != []
