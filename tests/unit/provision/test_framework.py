"""What of Python a platform gets beside the locked packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.errors import UsageError
from provision.framework import find_framework, further_packages


def test_what_every_platform_has_needs_no_further_package():
    assert further_packages(["keras", "sklearn", "xgboost"]) == []


def test_pytorch_is_pinned_and_brings_what_exports_its_models():
    packages = further_packages(["keras", "torch"])
    assert {package.partition("==")[0] for package in packages} == {"torch", "onnxscript"}
    assert all("==" in package for package in packages)


def test_a_wheel_of_pytorch_takes_the_place_of_the_pinned_one(tmp_path: Path):
    wheel = tmp_path / "torch-2.9.0+cpu-cp311-cp311-linux_x86_64.whl"
    wheel.touch()
    packages = further_packages(["torch", str(wheel)])
    assert packages[0] == str(wheel)
    assert [package for package in packages if package.startswith("torch==")] == []
    assert [package for package in packages if package.startswith("onnxscript==")] != []


def test_a_wheel_that_is_not_there_is_a_mistake_of_use(tmp_path: Path):
    with pytest.raises(UsageError, match=r"lost\.whl does not exist"):
        further_packages([str(tmp_path / "lost.whl")])


def test_a_released_version_is_taken_as_it_is(tmp_path: Path):
    found = find_framework("1.2.3", tmp_path)
    assert (found.wheel, found.version) == (None, "1.2.3")
