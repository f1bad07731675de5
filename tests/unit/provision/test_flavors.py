"""Requirements choose the flavor and the image."""

from __future__ import annotations

import pytest

from provision.clouds.flavors import Flavor, Image, flavor_choices, image_choices
from provision.spec import make_spec

DEBIAN = Image("i1", "Debian 12", "debian", "12", 2, 512, "2026-01-01")
SMALL = Flavor("s", "small", 1, 1024, 10)
MEDIUM = Flavor("m", "medium", 2, 4096, 20)
LARGE = Flavor("l", "large", 8, 16384, 40)
T4 = Flavor("t", "gpu.t4", 2, 4096, 20, {"gpu_number": "1", "gpu_model": "T4", "gpu_vendor": "NVIDIA"})
A100 = Flavor(
    "a", "gpu.a100", 16, 65536, 100, {"Accelerator:Number": "2", "Accelerator:Model": "A100", "Accelerator:Type": "GPU"}
)


def chosen(**wishes):
    spec = make_spec({"name": "p", **wishes})
    return flavor_choices([LARGE, A100, T4, MEDIUM, SMALL], spec, DEBIAN, {})


def test_the_smallest_flavor_that_serves_is_taken():
    flavor, choices = chosen(cpus=2, memory=4)
    assert flavor == MEDIUM
    verdicts = {choice.name: choice.verdict for choice in choices}
    assert verdicts["small"] == "only 1 CPU"
    assert verdicts["medium"] == "smallest that serves"
    assert verdicts["large"] == "larger than needed"
    assert verdicts["gpu.t4"] == "has 1 GPU that nobody asked for"


@pytest.mark.parametrize(
    ("gpu", "name"), [("T4", "gpu.t4"), ("a100", "gpu.a100"), ("any", "gpu.t4"), ("2", "gpu.a100")]
)
def test_gpus_are_found_by_extra_specs(gpu, name):
    flavor, _ = chosen(gpu=gpu)
    assert flavor is not None and flavor.name == name


def test_no_flavor_with_that_gpu():
    flavor, choices = chosen(gpu="H100")
    assert flavor is None
    assert {c.verdict for c in choices if c.name.startswith("gpu.")} == {"GPU is T4", "GPU is A100"}


@pytest.mark.parametrize(
    ("extra_specs", "gpus", "model"),
    [
        ({}, 0, ""),
        ({"gpu_number": "2", "gpu_model": "V100"}, 2, "V100"),
        ({"pci_passthrough:alias": "t4:1"}, 1, "t4"),
        ({"pci_passthrough:alias": "a30:2"}, 2, "a30"),
        ({"pci_passthrough:alias": "nvidia-l40s"}, 1, "nvidia-l40s"),
        ({"resources:VGPU": "1"}, 1, ""),
        ({"Accelerator:Type": "GPU", "Accelerator:Model": "A100"}, 1, "A100"),
    ],
)
def test_what_extra_specs_tell_of_gpus(extra_specs, gpus, model):
    flavor = Flavor("f", "f", 1, 1, 1, extra_specs)
    assert (flavor.gpus, flavor.gpu_model) == (gpus, model)


def test_a_flavor_over_quota_is_passed_over_with_the_reason():
    spec = make_spec({"name": "p"})
    flavor, choices = flavor_choices([MEDIUM, LARGE], spec, DEBIAN, {"m": "over the quota of CPUs"})
    assert flavor == LARGE
    assert choices[0].verdict == "over the quota of CPUs"


def test_a_flavor_too_small_for_the_image_is_passed_over():
    spec = make_spec({"name": "p", "cpus": 1, "memory": 1, "disk": 10})
    big = Image("i", "big", "debian", "12", 15, 0, "2026")
    flavor, _ = flavor_choices([SMALL, MEDIUM], spec, big, {})
    assert flavor == MEDIUM


def test_the_newest_image_of_the_preferred_system_is_taken():
    images = [
        Image("1", "Ubuntu", "ubuntu", "24.04", 0, 0, "2026-09-01"),
        Image("2", "Debian old", "debian", "12", 0, 0, "2025-01-01"),
        DEBIAN,
        Image("3", "snap", "debian", "12", 0, 0, "2026-10-01", snapshot=True),
        Image("4", "Windows", "windows", "11", 0, 0, "2026-10-02"),
        Image("5", "Debian-12-nameless", "", "", 0, 0, "2026-10-03"),
    ]
    image, choices = image_choices(images)
    assert image == DEBIAN
    verdicts = {choice.name: choice.verdict for choice in choices}
    assert verdicts["snap"] == "a snapshot of a machine"
    assert "os_distro" in verdicts["Debian-12-nameless"]
    assert "do not serve" in verdicts["Windows"]


def test_no_image_that_the_roles_serve():
    image, choices = image_choices([Image("4", "Windows", "windows", "11", 0, 0, "2026")])
    assert image is None
    assert len(choices) == 1
