"""What may be installed: python -m pytest tests/test_requirements.py"""

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch import ROOT


def parse(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("version", ["2.4.0a0+3bcc3cddb5.nv24.07", "2.4.0", "2.6.0+cu124", "2.13.0"])
def test_the_container_and_the_supported_releases_keep_their_torch(version):
    (torch,) = (r for r in parse("requirements.txt") if r.name == "torch")
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
    for requirement in parse("requirements.txt"):
        (pin,) = pins[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_cuda_extras_are_apart():
    names = {canonicalize_name(r.name) for file in ("requirements.txt", "constraints.txt") for r in parse(file)}
    extras = {canonicalize_name(r.name) for r in parse("requirements-cuda.txt")}
    assert extras == {"flash-attn", "adam-atan2"}
    assert not names & extras


def test_reasoning_gym_is_apart():
    assert [r.name for r in parse("requirements-gym.txt")] == ["reasoning-gym"]
    assert "reasoning-gym" not in {r.name for file in ("requirements.txt", "constraints.txt") for r in parse(file)}
