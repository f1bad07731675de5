"""Templates for the PaaS orchestrator: what is rendered is in order, and what is spoilt is found where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.errors import UsageError
from provision.framework import Framework
from provision.spec import make_spec
from provision.tosca.check import check
from provision.tosca.render import TYPES, Portfolio, render
from tests.conftest import REPOSITORY, Command

PORTFOLIO = Portfolio(
    types="https://git.example.org/tosca-types/raw/v4.0.0",
    role="https://git.example.org/ansible-role-mlaas4hep.git",
    tag="v1.0.0",
    guide="https://guides.example.org/mlaas4hep",
    icon="https://guides.example.org/mlaas4hep.png",
)
RELEASED = Framework(None, "1.2.3")
SHARED = {"service": "shared", "domain": "ml.example.org", "iam": "https://iam.example.org/", "client_id": "platform"}
SPECS: dict[str, dict[str, Any]] = {
    "personal": {},
    "large": {"cpus": 12, "memory": "1536MB", "disk": "100GB", "ports": [6006], "idle_stop": "3h"},
    "monitored": {"monitoring": "prometheus", "jupyter": True},
    "gpu": {"gpu": "T4:2", "frameworks": ["torch"]},
    "divided": {
        "gpu": "A100/1g.10gb+3x2g.20gb",
        "cvmfs": ["cms.cern.ch"],
        "cvmfs_proxy": "http://squid.example.org:3128",
    },
    "acme": SHARED,
    "registered": {**SHARED, "client_id": "registered", "groups": ["/cms"], "admin_groups": ["/cms/admins"]},
    "shared": {**SHARED, "tls": "internal", "gpu": "any", "endpoints": ["eos.example.org:1094"]},
    "slurm": {**SHARED, "tls": "internal", "executor": "slurm"},
    "cluster": {"workers": 3},
    "shared cluster": {**SHARED, "tls": "internal", "cloud": "site", "workers": 2, "worker_flavor": "m1.large"},
}


def rendered(folder: Path, **wishes: Any) -> list[Path]:
    return render(make_spec({"name": "higgs", **wishes}), RELEASED, PORTFOLIO, folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a shared platform with a GPU; tests spoil copies of them."""
    folder = tmp_path_factory.mktemp("shared") / "files"
    rendered(folder, **SPECS["shared"])
    return folder


@pytest.fixture
def files(shared: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("ansible-role-mlaas4hep", "*-private*")
    folder = shutil.copytree(shared, tmp_path / "files", ignore=ignored)
    replace(folder / "metadata.yml", "  - name: higgs-private.yaml\n    option: Private network\n", "")
    return folder


def replace(path: Path, old: str, new: str) -> int:
    """Replace the one place that has `old`; returns its line."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize("wishes", SPECS.values(), ids=SPECS)
def test_what_is_rendered_is_in_order(wishes: dict[str, Any], tmp_path: Path):
    templates = rendered(tmp_path / "files", **wishes)
    assert check(tmp_path / "files") == (sorted(templates), [])


def test_a_public_ca_cannot_reach_a_private_network(tmp_path: Path):
    assert [path.name for path in rendered(tmp_path / "acme", **SPECS["acme"])] == ["higgs.yaml"]
    assert [path.name for path in rendered(tmp_path / "own", **SPECS["slurm"])] == ["higgs.yaml", "higgs-private.yaml"]


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        ({"ttl": "7d"}, "ttl"),
        ({"image": "debian-12", "network": "public"}, "image, network"),
        ({"jump": "ada@gate"}, "jump"),
        ({**SHARED, "policy": __file__}, "policy"),
        ({**SHARED, "iam": "https://iam.example.org/{{x}}"}, "issuer"),
        ({**SHARED, "certificate": __file__, "certificate_key": __file__}, "certificate, certificate_key"),
        ({"frameworks": ["/tmp/torch-2.9.0-py3-none-any.whl"]}, "torch-2.9.0-py3-none-any.whl"),
    ],
)
def test_a_wish_that_no_template_can_say_is_named(wishes: dict[str, Any], named: str, tmp_path: Path):
    with pytest.raises(UsageError, match=named):
        rendered(tmp_path / "files", **wishes)
    assert not (tmp_path / "files").exists()


def test_an_existing_folder_is_left_alone(files: Path):
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="is there already"):
        rendered(files)
    assert before == {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}


def test_groups_see_the_service_and_nobody_else(tmp_path: Path):
    portfolio = Portfolio(**{**vars(PORTFOLIO), "groups": ("cms", "atlas")})
    render(make_spec({"name": "higgs"}), RELEASED, portfolio, tmp_path / "files")
    assert check(tmp_path / "files")[1] == []
    for name in ("metadata.yml", "higgs.metadata.yml"):
        assert "groups:\n" in (tmp_path / "files" / name).read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("types", "git.example.org/types"),
        ("role", "https://git.example.org/.."),
        ("role", "https://git.example.org/role,v2"),
        ("role", "https://git.example.org/{{ role }}"),
        ("tag", "v1,v2"),
        ("icon", "javascript:alert(1)"),
    ],
)
def test_what_is_no_address_is_refused(name: str, value: str):
    with pytest.raises(UsageError, match=r"is no address|cannot be the name"):
        Portfolio(**{**vars(PORTFOLIO), name: value})


REQUIRED = """  domain:
    display_name: Name
    description: DNS name that leads to the machine.
    type: hostname
    placeholder: ml.example.org
    required: true
"""
FAULTS = {
    # file, what stands there, what it is replaced by, what the problem says
    "key of a node": ("higgs.yaml", "    mlaas4hep:\n      type:", "    mlaas4hep:\n      tipe:", "it lacks 'type'"),
    "property": ("higgs.yaml", "        executor: local", "        exekutor: local", "exekutor"),
    "capability": ("higgs.yaml", "            num_cpus:\n              get", "            nun_cpus:\n              get",
                   "nun_cpus"),
    "section": ("higgs.yaml", "  node_templates:", "  node_template:", "node_template"),
    "key of an input": ("higgs.yaml", "DNS name that leads to the machine.", "x\n      defolt: y", "defolt"),
    "type of a property": ("higgs.yaml", "            count: 1", "            count: one", '"one" is not an integer'),
    "value of a property": ("higgs.yaml", "        executor: local", "        executor: slrum", "slurm"),
    "type of a default": ("higgs.yaml", "      default: 4 GiB", "      default: 4 parsecs", "4 parsecs"),
    "required property": ("higgs.yaml", "      properties:\n        name: higgs\n", "      properties:\n", "['name']"),
    "function": ("higgs.yaml", "          get_input: client_id", "          get_inputt: client_id", "get_inputt"),
    "unknown input": ("higgs.yaml", "          get_input: client_id", "          get_input: clientid", "clientid"),
    "node": ("higgs.yaml", "      - host: platform", "      - host: platfrom", "platfrom"),
    "node type": ("higgs.yaml", "tosca.nodes.indigo.Compute", "tosca.nodes.indigo.Computer", "indigo.Computer"),
    "version": ("higgs.yaml", "tosca_simple_yaml_1_0", "tosca_simple_yaml_9_0", "tosca_simple_yaml_9_0"),
    "import": ("higgs.yaml", "mlaas4hep_types.yaml", "mlaas4hep_type.yaml", "mlaas4hep_type.yaml"),
    "no YAML": ("higgs.yaml", "  outputs:\n    node_ip:\n", "  outputs: [\n    node_ip:\n", "valid YAML"),
    "key twice": ("higgs.yaml", "        executor: local", "        service: shared", "twice"),
    "index": ("higgs.yaml", "        - get_input: domain",
              "        - get_property: [mlaas4hep, endpoints, 0]", "get_property"),
    "variable": (TYPES, "            mlaas4hep_gpus:", "            mlaas4hep_gpu_s:", "mlaas4hep_gpu_s"),
    "input without a field": ("higgs.parameters.yml", "  os_version:", "  osversion:", "osversion"),
    "key of a field": ("higgs.parameters.yml", "    placeholder: ml", "    plaecholder: ml", "plaecholder"),
    "field type of old": ("higgs.parameters.yml", "    type: hostname", "    tag_type: hostname", "tag_type"),
    "kind of field": ("higgs.parameters.yml", "    type: ssh_user", "    type: ssh_users", "type"),
    "field of another type": ("higgs.parameters.yml", "    type: ssh_user", "    type: text", "cannot fill"),
    "choice of another type": ("higgs.parameters.yml", "    - value: 28800", "    - value: long", "idle_seconds"),
    "choice that is not allowed": ("higgs.parameters.yml", "    - value: A30", "    - value: A31", "A31"),
    "default": ("higgs.parameters.yml", "    default: 20 GiB", "    default: 30 GiB", "none of the choices"),
    "tab": ("higgs.parameters.yml", "true\n    tab: Service\n  issuer", "true\n    tab: Sevice\n  issuer",
            "there is no tab"),
    "field that has to be required": ("higgs.parameters.yml", REQUIRED,
                                      REQUIRED.replace("    required: true\n", ""), "required"),
    "metadata": ("higgs.metadata.yml", "  icon: https", "  ikon: https", "did you mean 'icon'"),
    "visibility": ("higgs.metadata.yml", "  visibility:\n    type: public",
                   "  visibility:\n    type: private", "groups"),
    "catalogue": ("metadata.yml", "    guide_url:", "    guide:", "guide"),
    "icon": ("metadata.yml", "icon: https://guides", "icon: guides", "no URI"),
    "template of the catalogue": ("metadata.yml", "  - name: higgs.yaml", "  - name: higs.yaml", "higs.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_is_found_with_file_and_line(fault: str, files: Path):
    name, old, new, words = FAULTS[fault]
    first = replace(files / name, old, new)
    lines = range(first, first + max(old.count("\n"), new.count("\n")) + 1)
    problems = check(files)[1]
    assert [p for p in problems if p.file == files / name and p.line in lines and words in p.text], problems


@pytest.mark.parametrize("value", [None, 1, "x", [1], {"a": {}}])
@pytest.mark.parametrize("place", ["imports", "topology_template", "inputs", "platform"])
def test_whatever_stands_there_is_a_problem_and_no_crash(place: str, value: Any, files: Path):
    document = yaml.safe_load((files / "higgs.yaml").read_text())
    topology = document["topology_template"]
    holder = {"inputs": topology, "platform": topology["node_templates"]}.get(place, document)
    holder[place] = value
    (files / "higgs.yaml").write_text(yaml.safe_dump(document))
    problems = check(files / "higgs.yaml")[1]
    assert problems and not [p for p in problems if "fails with" in p.text], problems


def test_a_file_that_aliases_make_endless_is_not_read(files: Path):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    (files / "higgs.yaml").write_text(bomb)
    (problem,) = check(files / "higgs.yaml")[1]
    assert "more than 100000 entries" in problem.text


def test_keys_that_are_merged_are_read(files: Path):
    replace(files / "higgs.yaml", "        executor: local\n", "        <<: &more {executor: local}\n")
    assert check(files / "higgs.yaml")[1] == []


def test_a_lost_file_of_the_form_is_named(files: Path):
    (files / "higgs.parameters.yml").unlink()
    (problem,) = check(files)[1]
    assert problem.text == "higgs.parameters.yml is not beside it"


def test_an_import_leads_to_no_file_outside_of_the_folder(files: Path):
    (files.parent / "outside.yaml").write_text("node_types: {}\n")
    (files / "link.yaml").symlink_to(files.parent / "outside.yaml")
    for address in ("../outside.yaml", "https://git.example.org/../outside.yaml", "https://git.example.org/link.yaml"):
        text = (files / "higgs.yaml").read_text()
        document = yaml.safe_load(text)
        document["imports"].append({"more": address})
        (files / "higgs.yaml").write_text(yaml.safe_dump(document))
        (problem,) = check(files / "higgs.yaml")[1]
        assert address in problem.text
        (files / "higgs.yaml").write_text(text)


def test_values_of_a_deployment_are_checked(files: Path, tmp_path: Path):
    good = {"domain": "ml.example.org", "client_id": "platform", "num_cpus": 4, "mem_size": "8 GiB"}
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(good))
    assert check(files / "higgs.yaml", values)[1] == []

    spoilt = "domain: ml.example.org\nnum_cpu: 4\nmem_size: 8 stones\nendpoints: [eos, 1]\ndisk_size: 30 GiB\n"
    values.write_text(spoilt + 'issuer: \'{{ lookup("pipe", "id") }}\'\n')
    found = {problem.line: problem.text for problem in check(files / "higgs.yaml", values)[1]}
    assert "there is no input 'num_cpu'; did you mean 'num_cpus'?" in found[2]
    assert "8 stones" in found[3]
    assert "endpoints" in found[4]
    assert "disk_size" in found[5]
    assert "issuer" in found[6]
    assert found[1] == "the input 'client_id' has no value and no default"


def test_values_of_a_cluster_are_checked(tmp_path: Path):
    rendered(tmp_path / "files", **SPECS["shared cluster"])
    values = tmp_path / "values.yaml"
    values.write_text("domain: ml.example.org\nclient_id: a\nworkers: 3\nworker_flavor: '{{ x }}'\niam_groups: [cms]\n")
    found = {problem.line: problem.text for problem in check(tmp_path / "files/higgs.yaml", values)[1]}
    assert "workers" in found[3] and "worker_flavor" in found[4] and "iam_groups" in found[5] and len(found) == 3


OFFERED = {
    "num_gpus", "gpu_model", "gpu_partitions", "num_cpus", "mem_size", "disk_size", "cvmfs_repositories", "cvmfs_proxy",
    "iam_groups", "iam_admin_groups", "certificate", "monitoring", "ports", "users", "os_version", "client_id",
}  # fmt: skip


def test_all_that_the_portfolio_offers_with_machine_learning_has_an_input(shared: Path):
    """Each row of the manual's table names inputs, which the form has."""
    text = (REPOSITORY / "docs/tosca.md").read_text().partition("What ML_INFN offers")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 10 and all("`" in row for row in rows)
    form = yaml.safe_load((shared / "higgs.parameters.yml").read_text())["inputs"]
    assert set(form) >= OFFERED and all(any(f"`{name}`" in row for row in rows) for name in OFFERED)


def test_no_template_is_a_mistake_of_use(tmp_path: Path):
    with pytest.raises(UsageError, match="no template"):
        check(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        check(tmp_path / "lost.yaml")


def test_the_command_renders_and_checks(provision: Command):
    (provision.home / "higgs.yaml").write_text("{name: higgs, cloud: [site, local], mlaas4hep: 1.2.3}\n")
    names = ("types", "role", "tag", "guide", "icon")
    options = [word for name in names for word in (f"--{name}", getattr(PORTFOLIO, name))]
    templates = provision("tosca", "render", "higgs.yaml", *options).splitlines()
    assert templates == ["higgs-tosca/higgs.yaml", "higgs-tosca/higgs-private.yaml"]
    line = replace(provision.home / templates[0], "        version: 1.2.3", "        vresion: 1.2.3")
    assert "2 problems in higgs-tosca" in provision.fails("tosca", "check", "higgs-tosca", status=1)
    found = json.loads(provision.run("tosca", "check", "higgs-tosca", "--json").stdout)
    assert {"file": templates[0], "line": line}.items() <= found["problems"][0].items()
