"""What a user may wish, and what is said of wishes that make no sense."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from provision.errors import UsageError
from provision.spec import Gpu, PlatformSpec, make_spec, make_specs, read_spec


@pytest.mark.parametrize(
    ("written", "gigabytes"),
    [("8", 8.0), (8, 8.0), ("8GB", 8.0), ("8 GiB", 8.0), ("512MB", 0.5), ("1.5g", 1.5), ("2T", 2048.0)],
)
def test_sizes_are_read_as_binary_gigabytes(written, gigabytes):
    assert make_spec({"name": "p", "memory": written}).memory == gigabytes


@pytest.mark.parametrize(
    ("written", "duration"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_time_to_live(written, duration):
    assert make_spec({"name": "p", "ttl": written}).ttl == duration


SHARED = {"name": "p", "service": "shared", "domain": "a.org", "iam": "https://iam.example.org/", "client_id": "c"}


def test_a_shared_service_is_reached_by_https():
    assert make_spec({"name": "p", "ports": [8888]}).open_ports == (8888,)
    assert make_spec({**SHARED, "ports": [443, 8888]}).open_ports == (443, 8888, 80)


def test_a_certificate_comes_with_its_key(tmp_path):
    (tmp_path / "cert.pem").touch()
    with pytest.raises(UsageError, match="belong together"):
        make_spec({**SHARED, "certificate": str(tmp_path / "cert.pem")})


@pytest.mark.parametrize(
    ("written", "model", "count"),
    [("T4", "T4", 1), ("A100:2", "A100", 2), (":2", "", 2), ("2", "", 2), (2, "", 2), ("any", "", 1), ("any:3", "", 3)],
)
def test_gpu_demands(written, model, count):
    assert make_spec({"name": "p", "gpu": written}).gpu == Gpu(model=model, count=count)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"name": "Upper"}, "lower-case letters"),
        ({"name": "-x"}, "begin with a letter"),
        ({"name": "a" * 31}, "1 to 30"),
        ({"name": "p", "memory": "lots"}, "'lots' is no size"),
        ({"name": "p", "ttl": "soon"}, "'soon' is no duration"),
        ({"name": "p", "ttl": "0h"}, "'0h' is no duration"),
        ({"name": "p", "gpu": "A100:x"}, "is no GPU demand"),
        ({"name": "p", "cpus": 0}, "cpus"),
        ({"name": "p", "ports": [70000]}, "ports.0"),
        ({"name": "p", "jump": "-oProxyCommand=sh"}, "USER@HOST"),
        ({"name": "p", "service": "shared", "domain": "ml.example.org"}, "needs iam and client_id"),
        ({"name": "p", "domain": "ml.example.org"}, "domain: only a shared service has that"),
        ({"name": "p", "service": "shared", "domain": "-x", "iam": "https://i", "client_id": "c"}, "domain"),
        ({"name": "p", "service": "shared", "domain": "a.org", "iam": "http://i", "client_id": "c"}, "iam"),
        ({"name": "p", "executor": "slurm"}, "executor: only a shared service has that"),
        ({"name": "p", "endpoints": ["eos.example:1094"]}, "endpoints: only a shared service has that"),
        (SHARED | {"endpoints": ["root://eos.example:1094"]}, "endpoints"),
        ({**SHARED, "executor": "condor"}, "executor: Input should be 'local' or 'slurm'"),
        ({"name": "p", "policy": "/nowhere.toml"}, "there is no file /nowhere.toml"),
        ({"name": "p", "flavour": "big"}, "there is no field 'flavour'"),
        ({"name": "p", "frameworks": ["tourch"]}, "no framework 'tourch'; did you mean torch?"),
        ({"name": "p", "frameworks": ["fortran"]}, "known are keras, sklearn, torch, xgboost, or the path of a wheel"),
        ({"name": "p", "gpu": "A100/3x3g.40gb"}, "3x3g.40gb is more than the 7 slices of a GPU"),
        ({"name": "p", "gpu": "A100/half"}, "gpu.mig: String should match pattern"),
        ({"name": "p", "cvmfs": ["cms"]}, "cvmfs.0: String should match pattern"),
        ({"name": "p", "groups": ["/cms"]}, "groups: only a shared service has that"),
        ({**SHARED, "groups": ["/cms"], "policy": __file__}, "groups and admin_groups stand in the policy"),
        ({"name": "p", "workers": 33}, "workers: Input should be less than or equal to 32"),
        ({"name": "p", "workers": 2, "cloud": "ssh:me@host"}, "a host that exists already has none"),
        ({"name": "p", "worker_flavor": "m1.large"}, "worker_flavor is of workers, and there are none"),
        ({"name": "p", "workers": 1, "worker_flavor": "m1.large"}, "this computer has no flavors"),
    ],
)
def test_wrong_wishes_are_named(wishes, words):
    with pytest.raises(UsageError) as caught:
        make_spec(wishes)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_spec_file_has_the_same_fields_as_the_options(tmp_path: Path):
    file = tmp_path / "platform.yml"
    file.write_text("name: higgs\ncpus: 4\nmemory: 16GB\ngpu: T4\nports: [443]\nttl: 3d\nframeworks: [keras, torch]\n")
    spec = make_spec(read_spec(file))
    assert (spec.name, spec.cpus, spec.memory, spec.ports) == ("higgs", 4, 16.0, (443,))
    assert spec.frameworks == ("keras", "torch")
    assert make_spec(spec.model_dump(mode="json")) == spec


def test_a_record_can_be_read_when_a_file_of_its_wishes_has_gone(tmp_path: Path):
    policy = tmp_path / "policy.toml"
    policy.touch()
    spec = make_spec({**SHARED, "policy": str(policy)})
    policy.unlink()
    assert PlatformSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(UsageError, match="there is no file"):
        make_spec(spec.model_dump(mode="json"))


@pytest.mark.parametrize(("text", "words"), [("- a\n- b\n", "no mapping"), ("a: [", "no valid YAML")])
def test_a_broken_spec_file_is_named(tmp_path: Path, text, words):
    file = tmp_path / "platform.yml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_spec(file)


def test_a_missing_spec_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nothing\.yml cannot be read: No such file"):
        read_spec(tmp_path / "nothing.yml")


def test_specs_that_differ_tell_in_what():
    one, other = make_spec({"name": "p"}), make_spec({"name": "p", "cpus": 8, "gpu": "T4"})
    assert one.differences(other) == ["cpus", "gpu"]
    assert one.digest() != other.digest()


@pytest.mark.parametrize("cloud", ["a, b/RegionTwo,a", ["a", " b/RegionTwo "]])
def test_clouds_are_alternatives_in_their_order(cloud: object):
    assert [spec.cloud for spec in make_specs({"name": "p", "cloud": cloud})] == ["a", "b/RegionTwo"]


def test_without_a_cloud_it_is_this_computer():
    assert make_specs({"name": "p"}) == [make_spec({"name": "p"})]


@pytest.mark.parametrize("cloud", ["", "a,,b", [], ["a", 1], {"a": "b"}, None])
def test_clouds_without_a_name_are_a_mistake(cloud: object):
    with pytest.raises(UsageError, match="names no clouds"):
        make_specs({"name": "p", "cloud": cloud})


def test_workers_bring_slurm_and_are_as_the_platform_but_for_what_is_reached_from_outside():
    spec = make_spec({**SHARED, "cpus": 4, "gpu": "T4", "workers": 2, "ports": [9000]})
    assert spec.slurm and not make_spec(SHARED).slurm
    worker = spec.of_worker()
    assert (worker.cpus, worker.gpu, worker.open_ports, worker.workers) == (4, spec.gpu, (), 0)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("100GB", 100.0),
        ("2T", 2048.0),
        ("provision-higgs-0123456789", "provision-higgs-0123456789"),
        ("964e6cbb-5d73-4c71-961a-c2752948a21b", "964e6cbb-5d73-4c71-961a-c2752948a21b"),
    ],
)
def test_a_data_volume_is_a_size_or_one_that_was_kept(written, read):
    assert make_spec({"name": "p", "data_volume": written}).data_volume == read
    spec = PlatformSpec.model_validate_json(make_spec({"name": "p", "data_volume": written}).model_dump_json())
    assert spec.data_volume == read


@pytest.mark.parametrize("written", ["0.1GB", "a b", "../x", "-x"])
def test_what_names_no_data_volume_is_refused(written):
    with pytest.raises(UsageError, match="data_volume"):
        make_spec({"name": "p", "data_volume": written})
