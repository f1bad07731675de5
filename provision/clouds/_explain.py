"""A plan as a script for people to read: the same resources, names and marks by commands of python-openstackclient.

Keys and user-data become files that nobody else can read; no secret is an argument of a command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from provision.clouds._marks import HOST_KEY, mark, metadata, resource_name, tags, volume_metadata
from provision.clouds.base import LOGIN_USER, Platform, Step
from provision.remote import AWAIT_CLOUD_INIT, MAKE_HOST_KEY, TAKE_HOST_KEY, host_alias

_TRIES = 60
_OF_WORKER = re.compile(r"worker-([0-9]+)(?:-(.+))?")
_PLACEHOLDERS = {"@PUBLIC@": "$public", "@HOST_PRIVATE@": "$host_private", "@HOST_PUBLIC@": "$host_public"}
"""What stands in the user-data for keys that the script makes, and the script's variables that hold them."""


def with_placeholders(platform: Platform) -> Platform:
    """The platform with placeholders for its keys, from which the user-data of a script are rendered."""
    public, host_private, host_public = _PLACEHOLDERS
    return replace(platform, public_key=public, host_private_key=host_private, host_public_key=host_public)


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        platform: the platform, or the worker of which a step is.
        values: the offer's values, see `OpenStackCloud.check`.
        words: the offer's facts.
        user: id of the cloud's user.
        cloud, region: the entry of clouds.yaml; region "" for the entry's own.
        account: of oidc-agent, by which the entry logs in; "" where it logs in by itself.
        rules: port and address family (IPv4, IPv6) of each rule of the security group.
        inner: address families that it admits between its machines.
        subnet: addresses of a private network, CIDR.
        user_data: renders that of a platform `with_placeholders`, or of a worker.
    """

    platform: Platform
    values: Mapping[str, str]
    words: Mapping[str, str]
    user: str
    cloud: str
    region: str
    account: str
    rules: Sequence[tuple[int, str]]
    inner: Sequence[str]
    subnet: str
    user_data: Callable[[Platform], str]

    @property
    def machine(self) -> str:
        """The name of the machine's variables and files."""
        return f"worker_{self.platform.worker}" if self.platform.worker else "server"


def script(subject: Subject, steps: Sequence[Step]) -> str:
    """The whole script, for a POSIX shell; a step that no command of the cloud does is a comment."""
    blocks = [_beginning(subject)]
    for number, step in enumerate(steps, start=1):
        key, of = step.key, subject
        if worker := _OF_WORKER.fullmatch(key):
            key, of = worker[2] or "server", replace(subject, platform=subject.platform.of_worker(int(worker[1])))
        lines = _BLOCKS.get(key, _by_provision)(of)
        blocks.append("\n".join([f"# {number}. {step.title}", *lines]))
    blocks.append(_end(subject))
    return "\n\n".join(blocks)


def _beginning(subject: Subject) -> str:
    platform = subject.platform
    words = [f"--tag {shlex.quote(tag)}" for tag in tags(platform, subject.user)]
    lines = [
        "#!/bin/sh",
        f"# The platform {platform.name} on the cloud {_in_comment(subject.cloud)}, made by hand as `provision",
        "# create` would, by commands of python-openstackclient. For one run; it stops at the first error.",
        *(f"# {fact}: {_in_comment(value)}" for fact, value in subject.words.items()),
        "set -eu",
        "umask 077",
        f"export OS_CLOUD={shlex.quote(subject.cloud)}",
        *([f"export OS_REGION_NAME={shlex.quote(subject.region)}"] if subject.region else []),
        *([f"export OS_ACCESS_TOKEN=$(oidc-token {shlex.quote(subject.account)})"] if subject.account else []),
        "",
        "# by these marks `provision adopt`, `delete` and `gc` know what belongs to the platform",
        f"name={shlex.quote(platform.name)}",
        f"made={shlex.quote(resource_name(platform))}",
        f"mark={shlex.quote(mark(platform))}",
        "# the tags of each network resource",
        "set -- \\",
        *_continued(words),
        "",
        "# keys and user-data, for nobody else to read",
        'keys="./$made"',
        'mkdir "$keys"',
    ]
    return "\n".join(lines)


def _keypair(subject: Subject) -> list[str]:
    record = subject.platform.record
    return [
        _new_key("id_ed25519", f"{record.owner} {record.name}"),
        'openstack keypair create --public-key "$keys/id_ed25519.pub" "$made"',
    ]


def _new_key(file: str, comment: str) -> str:
    return f"ssh-keygen -q -t ed25519 -N '' -C {shlex.quote(comment)} -f \"$keys/{file}\""


def _group(subject: Subject) -> list[str]:
    return [
        _kept("group", 'openstack security group create --description "$mark" "$@"', '"$made"'),
        *(
            f"openstack security group rule create --ingress --ethertype {family} --protocol tcp --dst-port {port}"
            ' --description "$mark" "$group"'
            for port, family in subject.rules
        ),
        *(
            f"openstack security group rule create --ingress --ethertype {family} --protocol any"
            ' --remote-group "$group" --description "$mark" "$group"'
            for family in subject.inner
        ),
    ]


def _network(_: Subject) -> list[str]:
    return [_kept("network", 'openstack network create --description "$mark" "$@"', '"$made"')]


def _subnet(subject: Subject) -> list[str]:
    words = f'--network "$network" --subnet-range {subject.subnet} --ip-version 4 --description "$mark" "$@"'
    return [_kept("subnet", f"openstack subnet create {words}", '"$made"')]


def _router(subject: Subject) -> list[str]:
    gateway = shlex.quote(subject.values["gateway"])
    words = f'--external-gateway {gateway} --description "$mark" "$@"'
    return [_kept("router", f"openstack router create {words}", '"$made"')]


def _interface(_: Subject) -> list[str]:
    return ['openstack router add subnet "$router" "$subnet"']


def _server(subject: Subject) -> list[str]:
    platform, values, machine = subject.platform, subject.values, subject.machine
    wishes = metadata(platform, subject.user)
    network = [f"network={shlex.quote(values['network'])}"] if values["network"] else []
    flavor = values["worker_flavor"] if platform.worker else values["flavor"]
    words = [
        "--wait",
        f"--flavor {shlex.quote(flavor)}",
        f"--image {shlex.quote(values['image'])}",
        '--key-name "$made"',
        '--network "$network"',
        '--security-group "$group"',
        '--user-data "$keys/user-data.yaml"',
        *(["--use-config-drive"] if values.get("ipv6_only") else []),
        *(f"--property {shlex.quote(f'{key}={value}')}" for key, value in wishes.items()),
        f"-f value -c id {platform.machine_name})",
    ]
    return [
        *network,
        "# the host key of the first contact; in the user-data its lines are joined, as in JSON",
        _new_key(f"{machine}_host_key", f"first host key of {platform.machine_name}"),
        'public=$(cat "$keys/id_ed25519.pub")',
        f'host_public=$(cat "$keys/{machine}_host_key.pub")',
        rf"""host_private=$(awk '{{ printf "%s\\n", $0 }}' "$keys/{machine}_host_key")""",
        'cat > "$keys/user-data.yaml" <<END',
        f"{_for_heredoc(subject.user_data(with_placeholders(platform)))}END",
        f"{machine}=$(openstack server create \\",
        *_continued(words),
        'rm "$keys/user-data.yaml"',
        *([] if values["external"] and not platform.worker else _own_address(machine)),
    ]


def _data_volume(subject: Subject) -> list[str]:
    values = subject.values
    marks = volume_metadata(subject.platform, subject.user)
    words = [f"--property {shlex.quote(f'{key}={value}')}" for key, value in marks.items()]
    if values["volume"]:
        return [
            f"volume={shlex.quote(values['volume'])}",
            'openstack volume set --description "$mark" \\',
            *_continued([*words, '"$volume"']),
        ]
    wanted = [f"--size {values['volume_gb']}", '--description "$mark"', *words, '-f value -c id "$made")']
    return [
        "volume=$(openstack volume create \\",
        *_continued(wanted),
        'until [ "$(openstack volume show -f value -c status "$volume")" = available ]; do sleep 1; done',
    ]


def _attachment(_: Subject) -> list[str]:
    return ['openstack server add volume "$server" "$volume"']


def _own_address(machine: str) -> list[str]:
    """The address of the server's port, an IPv4 one where it has both."""
    listed = f"""openstack port list --server "${machine}" -f json -c 'Fixed IP Addresses'"""
    variable = _address_of(machine)
    return [
        f"""addresses=$({listed} | sed -n 's/.*"ip_address": "\\([^"]*\\)".*/\\1/p')""",
        f'{variable}=$(echo "$addresses" | grep -F . || echo "$addresses")',
        f'{variable}=$(echo "${variable}" | head -n 1)',
    ]


def _address_of(machine: str) -> str:
    return "address" if machine == "server" else f"{machine}_address"


def _address(subject: Subject) -> list[str]:
    words = '--port "$port" --description "$mark" "$@" -f value -c floating_ip_address'
    external = shlex.quote(subject.values["external"])
    return [
        'port=$(openstack port list --server "$server" -f value -c ID)',
        f"address=$(openstack floating ip create {words} {external})",
    ]


def _ssh(subject: Subject) -> list[str]:
    """The first contact, with the host key that was handed over, and no other accepted; a worker's leads through."""
    platform, machine = subject.platform, subject.machine
    jump = platform.spec.jump
    if platform.worker:
        way = f"ProxyCommand ssh -F $keys/ssh_config -W [%h]:%p {platform.name}"
    else:
        way = f"ProxyCommand ssh -W [%h]:%p ssh://{_for_heredoc(jump)}" if jump else ""
    return [
        'cat >> "$keys/ssh_config" <<END',
        f"Host {platform.machine_name}",
        f"  HostName ${_address_of(machine)}",
        f"  User {LOGIN_USER}",
        "  IdentityFile $keys/id_ed25519",
        "  IdentitiesOnly yes",
        "  BatchMode yes",
        "  ConnectTimeout 5",
        "  StrictHostKeyChecking yes",
        "  GlobalKnownHostsFile none",
        f"  UserKnownHostsFile $keys/{machine}_known_hosts",
        f"  HostKeyAlias {_alias(subject)}",
        *([f"  {way}"] if way else []),
        "END",
        f'on_{machine}() {{ ssh -n -F "$keys/ssh_config" {platform.machine_name} "$@"; }}',
        *([] if platform.worker else _UNTIL_DONE),
        f'echo {_alias(subject)} "$(cat "$keys/{machine}_host_key.pub")" > "$keys/{machine}_known_hosts"',
        f"until_done on_{machine} true",
    ]


_UNTIL_DONE = (
    "until_done() {",
    "  tries=0",
    '  until "$@"; do',
    f"    tries=$((tries + 1)); [ $tries -lt {_TRIES} ] || exit 1",
    "    sleep 2",
    "  done",
    "}",
)


def _host_key(subject: Subject) -> list[str]:
    machine = subject.machine

    def on_machine(words: str) -> str:
        return f"on_{machine} {shlex.quote(shlex.join(['sudo', 'sh', '-c', words]))}"

    return [
        f"until_done {on_machine(f'{AWAIT_CLOUD_INIT}; true')}",
        f"host_public=$({on_machine(MAKE_HOST_KEY)})",
        on_machine(TAKE_HOST_KEY),
        f'echo {_alias(subject)} "$host_public" > "$keys/{machine}_known_hosts"',
        f'rm "$keys/{machine}_host_key" "$keys/{machine}_host_key.pub"',
        f'openstack server set --property {HOST_KEY}="$host_public" "${machine}"',
    ]


def _alias(subject: Subject) -> str:
    return host_alias(subject.platform.machine_name, subject.platform.uid)


def _by_provision(_: Subject) -> list[str]:
    return ["# no command of the cloud does that: `provision create` does, after `provision adopt` (see below)"]


_BLOCKS: dict[str, Callable[[Subject], list[str]]] = {
    "keypair": _keypair,
    "security-group": _group,
    "network": _network,
    "subnet": _subnet,
    "router": _router,
    "router-interface": _interface,
    "data-volume": _data_volume,
    "server": _server,
    "volume-attachment": _attachment,
    "floating-ip": _address,
    "ssh": _ssh,
    "host-key": _host_key,
}


def _end(subject: Subject) -> str:
    cloud = _in_comment(subject.cloud + (f"/{subject.region}" if subject.region else ""))
    name = subject.platform.name
    lines = [
        f"# `provision adopt {name} --cloud {cloud} --identity KEY` makes the platform known to provision, which then",
        f"# completes it (`provision create {name}` with its options) or removes it (`provision delete {name}`)",
        'echo "$name is made: $address, its key is $keys/id_ed25519"',
    ]
    return "\n".join(lines) + "\n"


def _in_comment(words: str) -> str:
    """Names of a cloud are other people's: they must not end the comment."""
    return " ".join(words.split())


def _kept(variable: str, command: str, name: str) -> str:
    """The id of what a command makes, in a variable."""
    return f"{variable}=$({command} -f value -c id {name})"


def _continued(words: Sequence[str]) -> list[str]:
    return [f"  {word} \\" for word in words[:-1]] + [f"  {words[-1]}"]


def _for_heredoc(text: str) -> str:
    """The text for a here-document in which the shell expands nothing but the variables of the keys."""
    for special in ("\\", "$", "`"):
        text = text.replace(special, f"\\{special}")
    for placeholder, variable in _PLACEHOLDERS.items():
        text = text.replace(placeholder, variable)
    return text
