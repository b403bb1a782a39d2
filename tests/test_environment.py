"""pyproject.toml, constraints.txt and environment.yml describe one environment, and it is the one that is tested."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from itertools import chain

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def package(project):
    return tomllib.loads((project / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def direct(package):
    """The package's own dependencies and those of its extras, by name."""
    texts = chain(package["dependencies"], *package["optional-dependencies"].values())
    return {canonicalize_name(one.name): one for one in map(Requirement, texts)}


@pytest.fixture(scope="module")
def pins(project):
    lines = (project / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(one.name) for one in found}) == len(found)
    return {canonicalize_name(one.name): one for one in found}


@pytest.fixture(scope="module")
def conda(project):
    return yaml.safe_load((project / "environment.yml").read_text())


def version_of(pin):
    return re.fullmatch(r"==([\w.+!]+)", str(pin.specifier)).group(1)


def test_every_dependency_is_pinned_within_its_range(direct, pins):
    assert sorted(set(direct) - set(pins)) == []
    outside = [
        f"{one}, pinned {pins[name]}" for name, one in direct.items() if version_of(pins[name]) not in one.specifier
    ]
    assert outside == []


def test_torch_is_the_tested_one_and_older_ones_are_accepted(direct, pins):
    assert str(pins["torch"]) == "torch==2.13.0"
    assert "2.11" in direct["torch"].specifier
    assert "2.10" not in direct["torch"].specifier


def test_the_tests_run_with_the_pinned_versions(direct, pins):
    # A pin without a local part (2.13.0) takes every build of that version (2.13.0+cpu).
    installed = {name: metadata.version(name) for name in direct}
    assert {name: found for name, found in installed.items() if found not in pins[name].specifier} == {}


def test_conda_installs_the_package_with_every_extra_by_the_same_pins(conda, package):
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert "--constraint constraints.txt" in pip
    editable = next(line for line in pip if line.startswith("--editable"))
    extras = re.fullmatch(r"--editable \.\[(.*)\]", editable).group(1).split(",")
    assert sorted(extras) == sorted(package["optional-dependencies"])
    assert any(str(entry).startswith("quarto") for entry in conda["dependencies"])


def test_python_is_one_that_the_package_takes(conda, package):
    python = next(entry for entry in conda["dependencies"] if str(entry).startswith("python="))
    takes = SpecifierSet(package["requires-python"])
    assert python.removeprefix("python=") in takes
    assert "3.10" not in takes
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in takes


def test_everything_imported_is_a_declared_dependency(project, direct):
    """A package that comes along with another one today may be gone tomorrow."""
    imported = {name for path in (project / "mtvlib").glob("*.py") for name in imports_of(path.read_text())}
    owners = metadata.packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - {"mtvlib"}
    undeclared = [name for name in foreign if not {canonicalize_name(one) for one in owners[name]} & set(direct)]
    assert sorted(undeclared) == []


def imports_of(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
