"""The machine on this computer: made of the computer's own settings, reached by SSH, repaired, and removed whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provision.clouds import _computer, _container, _image, _network
from provision.clouds.base import LOGIN_USER, Offer, Platform
from provision.clouds.local import LocalCloud
from provision.errors import ProvisionError, UsageError
from provision.record import Home, Record, Resource, new_uid
from provision.remote import ConnectionLostError, Remote, make_key, write_known_hosts, write_ssh_config
from provision.spec import make_spec
from tests.conftest import REPOSITORY

PATIENCE = 600
WISHES = {"cpus": 1, "memory": 1, "disk": 4}


@pytest.fixture(scope="module")
def cloud(computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> LocalCloud:
    """The cloud, in an empty home."""
    return LocalCloud(Home(tmp_path_factory.mktemp("machines")))


def platform_of(cloud: LocalCloud, name: str) -> Platform:
    """A platform as the command has it before the first step: record and keys."""
    folder = cloud.home.folder(name)
    spec = make_spec({"name": name, **WISHES})
    if not folder.record_file.exists():
        folder.save(Record(name=name, uid=new_uid(), owner="test", toolkit="0", spec=spec))
    public, host = make_key(folder.key, name), make_key(folder.first_host_key, name)
    return Platform(folder.load(), folder, public, folder.first_host_key.read_text(), host)


def carry_out(cloud: LocalCloud, platform: Platform) -> tuple[Offer, dict[str, Resource]]:
    """Do the steps that are not done, as a plan does."""
    offer = cloud.check(platform.spec, platform.record)
    return offer, {step.key: step.find() or step.make() for step in cloud.steps(platform, offer)}


def remove(cloud: LocalCloud, platform: Platform) -> None:
    """Remove all that is found, the latest first."""
    for resource in reversed(cloud.discover(platform)):
        cloud.remove(platform, resource)


def traces(uid: str) -> list[str]:
    """All of this computer that bears the uid, looked up without the toolkit."""
    places = [
        subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines() for words in LISTINGS
    ]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{uid}*")]
    return [line for lines in (*places, command_lines(), groups) for line in lines if uid in line]


LISTINGS = (
    ["ip", "netns", "list"],
    ["ip", "-o", "link"],
    ["ip", "route", "show", "table", "all"],
    ["iptables-save"],
    ["cat", "/proc/self/mountinfo"],
    ["find", "/run/provision", "/run/systemd/nspawn"],
)


def command_lines() -> list[str]:
    """Of all processes; some end meanwhile."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return found


def forwarding() -> str:
    """The switch of the interface of the default route; `needed` while somebody else lets this computer forward."""
    conf = Path("/proc/sys/net/ipv4/conf")
    others = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    if "provision-" in others or (conf / "all/forwarding").read_text().strip() == "1":
        return "needed"
    return (conf / _network.default_route()[0] / "forwarding").read_text().strip()


def assert_given_back(before: str) -> None:
    """The switch is as it was, unless others have needed it."""
    assert "needed" in (before, after := forwarding()) or after == before


@contextlib.contextmanager
def ssh(cloud: LocalCloud, platform: Platform) -> Iterator[Remote]:
    """A connection that accepts only the host key that was put into the machine."""
    write_known_hosts(platform.folder, platform.uid, platform.host_public_key)
    write_ssh_config(platform.folder, platform.uid, cloud.access(platform))

    def still_alive() -> None:
        assert (state := cloud.state(platform)) in ("running", "starting"), f"{state}\n{cloud.console(platform)}"

    with Remote(platform.folder) as remote:
        try:
            remote.wait(PATIENCE, still_alive)
        except ConnectionLostError as error:
            raise AssertionError(f"{error}: {cloud.state(platform)}\n{cloud.console(platform)}") from error
        yield remote


@pytest.fixture(scope="module")
def machine(cloud: LocalCloud) -> Iterator[Platform]:
    """One machine for the tests of a running machine, which must be left running."""
    before = forwarding()
    platform = platform_of(cloud, "lab")
    os.environ["LEAK_OF_THE_CALLER"] = "yes"
    try:
        carry_out(cloud, platform)
    finally:
        del os.environ["LEAK_OF_THE_CALLER"]
        try:
            yield platform
        finally:
            remove(cloud, platform)
    assert traces(platform.uid) == []
    assert_given_back(before)
    assert not platform.folder.machine.exists()


@pytest.mark.machine
def test_every_step_is_found_done_and_is_not_done_twice(cloud: LocalCloud, machine: Platform):
    offer = cloud.check(machine.spec, machine.record)
    found = [step.find() for step in cloud.steps(machine, offer)]
    assert [(r.kind, r.ours) for r in found if r] == [
        ("image", False),
        ("root", True),
        ("network", True),
        ("machine", True),
    ]
    assert carry_out(cloud, machine)[1] == dict(zip(("image", "root", "network", "machine"), found, strict=True))
    assert cloud.state(machine) == "running"


@pytest.mark.machine
def test_the_login_user_meets_a_running_systemd(cloud: LocalCloud, machine: Platform):
    with ssh(cloud, machine) as remote:
        assert remote.run(["id", "-un"]).strip() == LOGIN_USER
        assert remote.run(["hostname"]).strip() == machine.name
        assert remote.run(["systemctl", "is-system-running", "--wait"]).strip() == "running"
        assert "LEAK" not in remote.run(["sudo", "cat", "/proc/1/environ"])


@pytest.mark.machine
def test_downloads_work_as_on_this_computer(cloud: LocalCloud, machine: Platform):
    with ssh(cloud, machine) as remote:
        assert "Err:" not in remote.run(["sudo", "apt-get", "update"])
        remote.run(["python3", "-m", "venv", "here"])
        remote.run(["here/bin/pip", "download", "--quiet", "--no-deps", "six"])
        assert remote.run(["sh", "-c", "ls six-*.whl"])


@pytest.mark.machine
def test_the_machine_may_not_use_more_memory_than_it_was_given(cloud: LocalCloud, machine: Platform):
    if "memory" not in _container.limits():
        pytest.skip("this computer has no control groups that limit memory")
    allocate = 'python3 -c "bytearray($0 << 20)" || echo refused'
    with ssh(cloud, machine) as remote:
        assert remote.run(["sh", "-c", allocate, "100"]) == ""
        assert remote.run(["sh", "-c", allocate, "1500"]) == "refused\n"


def first_process(cloud: LocalCloud, platform: Platform) -> _computer.Process:
    """The machine's PID 1, as the cloud's own account of it names it."""
    found = cloud.steps(platform, Offer())[-1].find()
    assert found
    process = _computer.Process.read(int(found.details["pid"]))
    assert process
    return process


@pytest.mark.machine
def test_a_reboot_inside_the_machine_brings_it_back(cloud: LocalCloud, machine: Platform):
    before = first_process(cloud, machine)
    with ssh(cloud, machine) as remote, contextlib.suppress(ConnectionLostError):
        remote.run(["sudo", "systemctl", "reboot"])
    assert _computer.ended([before], PATIENCE)
    with ssh(cloud, machine) as remote:
        assert remote.run(["systemctl", "is-system-running", "--wait"]).strip() == "running"
    assert first_process(cloud, machine) != before


@pytest.mark.machine
def test_a_reboot_whose_boot_fails_for_a_moment_is_tried_again(cloud: LocalCloud, machine: Platform):
    program = "usr/lib/systemd/systemd"
    here = machine.folder.machine / "root" / program
    with ssh(cloud, machine) as remote, contextlib.suppress(ConnectionLostError):
        remote.run(["sudo", "sh", "-c", f"mv /{program} /{program}.gone && systemctl reboot"])
    end = time.monotonic() + PATIENCE
    while "execv" not in cloud.console(machine):
        assert time.monotonic() < end, cloud.console(machine)
        time.sleep(0.1)
    groups = [
        path for path in Path("/sys/fs/cgroup").glob(f"*/*{machine.uid}") if path.parent.name in ("cpu", "memory")
    ]
    limits = {file: file.read_text() for group in groups for file in group.iterdir() if file.name in LIMITS}
    for group in groups:  # as another systemd does that sees them empty
        remove_empty(group)
    here.with_name("systemd.gone").rename(here)
    with ssh(cloud, machine) as remote:
        assert remote.run(["systemctl", "is-system-running", "--wait"]).strip() == "running"
    assert {file: file.read_text() for file in limits} == limits


LIMITS = ("cpu.cfs_quota_us", "cpu.shares", "memory.limit_in_bytes")


def remove_empty(group: Path) -> None:
    end = time.monotonic() + PATIENCE
    while group.exists():
        with contextlib.suppress(OSError):  # a boot that fails is in it
            group.rmdir()
            return
        assert time.monotonic() < end, group


@pytest.mark.machine
def test_stop_and_start_keep_disk_and_address(cloud: LocalCloud, machine: Platform):
    address = cloud.access(machine)
    with ssh(cloud, machine) as remote:
        remote.run(["touch", "kept"])
    cloud.stop(machine)
    assert cloud.state(machine) == "stopped"
    cloud.start(machine)
    cloud.start(machine)
    assert cloud.access(machine) == address
    with ssh(cloud, machine) as remote:
        assert remote.run(["ls", "kept"]) == "kept\n"


# what would be found by a machine that has been idle since 1970, again and again until the powering off
IDLE = """
while :; do
    echo '{"checked": 1, "cpu_seconds": 0, "idle_since": 1}' >/run/platform/activity.json
    python3 /usr/local/sbin/platform-activity 3600
    sleep 0.2
done
"""


@pytest.mark.machine
def test_a_machine_that_nobody_uses_powers_itself_off_and_is_started_again(cloud: LocalCloud, machine: Platform):
    script = (REPOSITORY / "roles/base/files/platform-activity").read_text()
    with ssh(cloud, machine) as remote:
        remote.run(["sudo", "tee", "/usr/local/sbin/platform-activity"], stdin=script)
        remote.run(["sudo", "python3", "/usr/local/sbin/platform-activity", "1"])
        state = json.loads(remote.run(["cat", "/run/platform/activity.json"]))
        assert (state["busy"], state["idle_since"]) == ("a connection to port 22", None)
        remote.run(["sudo", "systemd-run", "--unit=looks", "sh", "-c", IDLE])
    end = time.monotonic() + PATIENCE
    while cloud.state(machine) != "stopped":
        assert time.monotonic() < end, cloud.console(machine)
        time.sleep(0.2)
    cloud.start(machine)
    with ssh(cloud, machine) as remote:
        assert remote.run(["systemctl", "is-system-running", "--wait"]).strip() == "running"


def test_what_is_started_detached_runs_before_anybody_looks_for_it(tmp_path: Path):
    words = ["sh", "-c", f"sleep 0.2; touch {tmp_path}/runs; exec </dev/null"]
    _container._detach(words, tmp_path / "console")
    assert (tmp_path / "runs").exists()


@pytest.mark.machine
def test_a_killed_machine_is_seen_and_repaired(cloud: LocalCloud, machine: Platform):
    first = first_process(cloud, machine)
    os.kill(first.parent, signal.SIGKILL)
    assert _computer.ended([first], PATIENCE)
    end = time.monotonic() + PATIENCE
    # what had started it tidies up and ends a moment later
    while (state := cloud.state(machine)) not in ("stopped", "error"):
        assert time.monotonic() < end, state
        time.sleep(0.1)
    cloud.start(machine)
    assert cloud.state(machine) == "running"
    with ssh(cloud, machine) as remote:
        assert remote.answers()


@pytest.mark.machine
def test_a_lost_network_is_repaired_under_the_same_address(cloud: LocalCloud, machine: Platform):
    address = cloud.access(machine)
    cloud.stop(machine)
    _network.disconnect(machine.uid)  # as a restart of this computer does
    cloud.start(machine)
    assert cloud.access(machine) == address
    with ssh(cloud, machine) as remote:
        remote.run(["sudo", "apt-get", "update", "-qq"])


@pytest.mark.machine
def test_the_console_tells_why_a_machine_fails(cloud: LocalCloud, machine: Platform):
    with ssh(cloud, machine) as remote:
        remote.run(["sudo", "systemd-cat", "-p", "err", "echo", "something broke"])
        remote.run(["sudo", "journalctl", "--sync"])
    assert "something broke" in cloud.console(machine)


@pytest.mark.machine
def test_remove_does_not_go_through_a_mount(cloud: LocalCloud, tmp_path: Path):
    platform = platform_of(cloud, "mounted")
    precious, point = tmp_path / "precious", platform.folder.machine / "root/mnt"
    precious.mkdir()
    (precious / "data").write_text("keep")
    point.mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, point], check=True)
    try:
        with pytest.raises(ProvisionError, match=r"root/mnt is mounted there.*umount"):
            remove(cloud, platform)
    finally:
        subprocess.run(["umount", point], check=True)
    assert (precious / "data").read_text() == "keep"
    remove(cloud, platform)
    assert not platform.folder.machine.exists()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_command(number: int) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Let the commands of a step pass, but for that one: begin it, and be killed."""
    begun = 0

    def run(words: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        nonlocal begun
        begun += 1
        process = subprocess.Popen(words, **{k: v for k, v in options.items() if k != "check"})  # type: ignore[call-overload]
        if begun == number:
            if words[0] != "setpriv":
                process.wait()
            die()
        output, _ = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, output)

    return run


def killed(cloud: LocalCloud, platform: Platform, step: str, command: int) -> bool:
    """Do one step in another process that is killed in its command of that number; False when it has fewer."""
    words = [sys.executable, "-m", __name__, str(cloud.home.path), platform.name, step, str(command)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.machine
def test_a_creation_killed_anywhere_is_finished_by_the_next_and_disturbs_no_other(cloud: LocalCloud, machine: Platform):
    before = forwarding()
    platform = platform_of(cloud, "killed")
    try:
        moments = {}
        for step in ("root", "network", "machine"):
            moments[step] = 1
            while killed(cloud, platform, step, moments[step]):
                moments[step] += 1
                assert not [line for line in traces(platform.uid) if "tar" in line.split("\0")]
        assert moments["root"] > 1
        assert moments["network"] > 10
        assert moments["machine"] > 1
        _, made = carry_out(cloud, platform)
        with ssh(cloud, platform) as remote:
            assert remote.answers()
        assert cloud.access(platform).host != cloud.access(machine).host
        assert len([line for line in traces(platform.uid) if line.startswith(("-A POSTROUTING", "-A FORWARD"))]) == 3
        assert len([line for line in traces(platform.uid) if line.startswith("systemd-nspawn")]) == 1
        assert sorted(path.name for path in platform.folder.machine.iterdir() if not path.name.startswith(".")) == [
            "console.log",
            "network.json",
            "root",
        ]
        assert {resource.kind for resource in made.values() if resource.ours} == {"root", "network", "machine"}
    finally:
        remove(cloud, platform)
    assert traces(platform.uid) == []
    assert_given_back(before)
    with ssh(cloud, machine) as remote:
        remote.run(["sudo", "apt-get", "update", "-qq"])


@pytest.mark.machine
def test_the_image_of_a_killed_build_is_no_image(cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PROVISION_CACHE")  # the cache that all tests share has the image already
    home = Home(tmp_path / "home")
    platform = platform_of(LocalCloud(home), "early")
    assert killed(LocalCloud(home), platform, "image", 1)
    assert LocalCloud(home).steps(platform, Offer())[0].find() is None
    builders = [p for p in _computer.processes() if str(home.path) in " ".join(p.words)]
    assert _computer.ended(builders, PATIENCE)
    assert _computer.mounts_below(home.path) == []


@pytest.mark.machine
@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"cpus": 1000}, "This computer has not enough for the machine: CPUs"),
        ({"memory": "100TB"}, "not enough for the machine: memory"),
        ({"disk": "1000TB"}, "not enough for the machine: free disk"),
        ({"image": "windows-11"}, "There is no image 'windows-11' here"),
        ({"network": "blue"}, "joins no other \\('blue'\\)"),
        ({"gpu": "Unobtainium"}, "0 of the wanted GPUs"),
    ],
)
def test_what_this_computer_cannot_give_is_refused_in_a_sentence(
    cloud: LocalCloud, wishes: dict[str, object], words: str
):
    spec = make_spec({"name": "big", **WISHES, **wishes})
    with pytest.raises(ProvisionError, match=words):
        cloud.check(spec)
    assert not cloud.home.folder("big").path.exists()


@pytest.mark.machine
def test_the_plan_says_what_will_be_made(cloud: LocalCloud):
    offer = cloud.check(make_spec({"name": "fits", **WISHES, "ports": [8080]}))
    assert "1 CPU, 1 GB" in offer.facts["machine"]
    assert "8080" in offer.facts["ports"]
    assert not any(quota.exceeded for quota in offer.quotas)


@pytest.mark.machine
def test_a_range_that_names_resolve_into_is_not_taken(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch):
    first = _network.choose_range([])
    taken = str(first[7])
    assert _network.choose_range([taken]) != first
    monkeypatch.setenv(_network.RANGE_VARIABLE, str(first))
    with pytest.raises(ProvisionError, match=f"{taken} is in use"):
        _network.choose_range([taken])
    monkeypatch.setenv(_network.RANGE_VARIABLE, "198.18.0.0/99")
    with pytest.raises(UsageError, match=_network.RANGE_VARIABLE):
        _network.choose_range([])


def test_settings_that_name_this_computers_own_disk_stay_here(tmp_path: Path):
    root, home = tmp_path / "root", tmp_path / "home"
    written = {
        "etc/apt/sources.list": "deb cdrom:[Debian] bookworm main\ndeb http://mirror.example/debian bookworm main\n",
        "etc/apt/sources.list.d/old.list.disabled": "deb http://old.example/debian bookworm main\n",
        "etc/apt/apt.conf.d/10proxy": 'Acquire::http::Proxy "http://proxy.example:3128";\n',
        "etc/apt/apt.conf.d/20hook": 'Acquire::x "y"; APT::Update::Post-Invoke {"touch /tmp/x";};\n',
        "usr/local/share/ca-certificates/site.crt": "certificate",
        "etc/pip.conf": "[global]\nindex-url = https://index.example/simple\nfind-links = /opt/wheels\n",
    }
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    settings = _image.read_settings(root, home, {"PIP_DEFAULT_TIMEOUT": "60", "PIP_EXTRA_INDEX_URL": "file:///opt/x"})
    assert settings.files == {
        "/etc/apt/sources.list": b"deb http://mirror.example/debian bookworm main\n",
        "/etc/apt/apt.conf.d/10proxy": written["etc/apt/apt.conf.d/10proxy"].encode(),
        "/usr/local/share/ca-certificates/site.crt": b"certificate",
        "/etc/pip.conf": b"[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"
        b"index-url = https://index.example/simple\ndefault-timeout = 60\n",
    }
    assert settings.hosts() == ["index.example", "mirror.example", "proxy.example"]


def main(home: str, name: str, step: str, command: str) -> None:
    """Do the step, and be killed (SIGKILL) in its command of that number."""
    cloud = LocalCloud(Home(Path(home)))
    platform = platform_of(cloud, name)
    offer = cloud.check(platform.spec, platform.record)
    wanted = next(each for each in cloud.steps(platform, offer) if each.key == step)
    if not wanted.find():
        subprocess.run = kill_at_command(int(command))  # type: ignore[assignment]
        wanted.make()


if __name__ == "__main__":
    main(*sys.argv[1:])
