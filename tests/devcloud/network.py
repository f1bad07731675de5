"""The network of this computer: what Neutron is told about it, the bridge to outside, and taking all of it away again.

The bridge is also the record: it carries the state directory as its alias, is made first and deleted last. `close`
removes Neutron's namespaces, links, chains and sets only while that bridge is there, so it touches no other Neutron.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from tests.devcloud import guest
from tests.devcloud.commands import DevcloudError, attempt, output
from tests.devcloud.state import DIR, RUN

BRIDGE = "br-devcloud"
RULE_COMMENT = "devcloud"
# Documentation ranges of RFC 5737: the first that this computer neither routes nor resolves names into
EXTERNAL_RANGES = ("198.51.100.0/24", "203.0.113.0/24")
_NEUTRON_LINK = re.compile(r"(brq|tap)[0-9a-f]{8}-[0-9a-f]{2}|vxlan-\d+")
_NEUTRON_NAMESPACE = re.compile(r"q(router|dhcp)-.+")
_NEUTRON_SET = re.compile(r"N(ET)?IPv[46]\S+")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# each systemd has about ten of these, and all of the containers count as the same user
_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
_LEAST_INSTANCES = 1024
_SYSCTLS = [
    _FORWARDING,
    _INSTANCES,
    *(Path(f"/proc/sys/net/bridge/bridge-nf-call-{x}tables") for x in ("ip", "ip6", "arp")),
]
_SAVED_SYSCTLS = RUN / "sysctl.json"


@dataclass(frozen=True)
class DefaultRoute:
    """Interface, IPv4 address and MTU with which this computer reaches the outside."""

    device: str
    address: str
    mtu: int


def default_route() -> DefaultRoute:
    """The default route.

    Raises:
        DevcloudError: there is none.
    """
    routes = json.loads(output("ip", "-j", "-4", "route", "show", "default"))
    if not routes:
        raise DevcloudError("this computer has no IPv4 default route, which the guests need")
    device = routes[0]["dev"]
    link = json.loads(output("ip", "-j", "-4", "address", "show", "dev", device))[0]
    return DefaultRoute(device, routes[0].get("prefsrc") or link["addr_info"][0]["local"], link["mtu"])


def name_server() -> str:
    """IPv4 address of a name server that a guest can reach too.

    Raises:
        DevcloudError: only loopback addresses are configured.
    """
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if path.exists():
            for address in re.findall(r"^\s*nameserver\s+([0-9.]+)\s*$", path.read_text(), re.M):
                if not address.startswith("127."):
                    return str(address)
    raise DevcloudError("/etc/resolv.conf has no IPv4 name server that guests could reach")


def external_range() -> IPv4Network:
    """Range of the external network: $DEVCLOUD_EXTERNAL_CIDR, or the first documentation range that is free here.

    Raises:
        DevcloudError: none can be used.
    """
    chosen = os.environ.get("DEVCLOUD_EXTERNAL_CIDR")
    reasons = []
    for cidr in [chosen] if chosen else EXTERNAL_RANGES:
        try:
            network = IPv4Network(cidr)
        except ValueError as error:
            raise DevcloudError(f"DEVCLOUD_EXTERNAL_CIDR: {error}") from error
        if not (reason := _conflict(network)):
            return network
        reasons.append(f"{cidr}: {reason}")
    raise DevcloudError(f"no range for the external network ({'; '.join(reasons)}); set DEVCLOUD_EXTERNAL_CIDR")


def _conflict(network: IPv4Network) -> str:
    """Why the external network cannot be this one; empty when it can."""
    if network.num_addresses < 64:
        return "it is too small, 64 addresses are needed"
    routes = json.loads(output("ip", "-j", "route", "show", "root", network))
    if any(route.get("dev") not in ("lo", BRIDGE) for route in routes):
        return "it is routed on this computer"
    # Some networks answer every name with an address of a documentation range: downloads would end in our bridge
    settings = " ".join(data.decode(errors="replace") for data in guest.host_settings().files.values())
    for host in {*re.findall(r"https?://(?:[^/\s@]*@)?([^/:\s]+)", settings), name_server()}:
        if address := next((a for a in _addresses(host) if a in network), None):
            return f"{host} has the address {address} here"
    return ""


def _addresses(host: str) -> list[ipaddress.IPv4Address]:
    try:
        found = socket.getaddrinfo(host, 80, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.IPv4Address(entry[4][0]) for entry in found]


def _links() -> dict[str, str]:
    """Interfaces of this computer and their aliases."""
    return {link["ifname"]: link.get("ifalias", "") for link in json.loads(output("ip", "-j", "link"))}


def _namespaces() -> list[str]:
    names = (entry["name"] for entry in json.loads(output("ip", "-j", "netns") or "[]"))
    return [name for name in names if _NEUTRON_NAMESPACE.fullmatch(name)]


def check_free() -> None:
    """Check that no Neutron, ours or another, is on this computer.

    Raises:
        DevcloudError: there is one.
    """
    links = _links()
    if BRIDGE in links:
        raise DevcloudError(f"the bridge {BRIDGE} is left of the cloud in {links[BRIDGE] or DIR}: take that one down")
    if _namespaces() or any(_NEUTRON_LINK.fullmatch(name) for name in links):
        raise DevcloudError("another Neutron has bridges or namespaces on this computer: stop that OpenStack first")


def open_bridge(route: DefaultRoute, external: IPv4Network) -> None:
    """Make the bridge of the external network, with this computer as its gateway, translating to its own address."""
    if not _SAVED_SYSCTLS.exists():
        values = {str(path): path.read_text().strip() for path in _SYSCTLS if path.exists()}
        _SAVED_SYSCTLS.write_text(json.dumps(values))
    output("ip", "link", "add", BRIDGE, "mtu", route.mtu, "type", "bridge")
    output("ip", "link", "set", BRIDGE, "alias", DIR)
    output("ip", "address", "add", f"{external[1]}/{external.prefixlen}", "dev", BRIDGE)
    output("ip", "link", "set", BRIDGE, "up")
    _FORWARDING.write_text("1\n")
    _INSTANCES.write_text(f"{max(_LEAST_INSTANCES, int(_INSTANCES.read_text()))}\n")
    for table, chain, rule in _rules(route.device, external):
        output("iptables", "-w", "-t", table, "-I", chain, *rule, "-m", "comment", "--comment", RULE_COMMENT)


def _rules(device: str, external: IPv4Network) -> list[tuple[str, str, list[str]]]:
    """Table, chain and words of each rule: translation to outside, TCP segments that fit, forwarding allowed."""
    clamp = "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
    answers = "-m conntrack --ctstate RELATED,ESTABLISHED"
    rules = [
        ("nat", "POSTROUTING", f"-s {external} ! -d {external} -o {device} -j MASQUERADE"),
        ("mangle", "FORWARD", f"-i {BRIDGE} {clamp}"),
        ("mangle", "FORWARD", f"-o {BRIDGE} {clamp}"),
        ("filter", "FORWARD", f"-i {BRIDGE} -o {device} -j ACCEPT"),
        ("filter", "FORWARD", f"-i {device} -o {BRIDGE} {answers} -j ACCEPT"),
    ]
    return [(table, chain, words.split()) for table, chain, words in rules]


def close() -> None:
    """Remove what `open_bridge` and Neutron made on this computer, and nothing of anybody else."""
    links = _links()
    if links.get(BRIDGE) in ("", str(DIR)):
        for namespace in _namespaces():
            attempt("ip", "netns", "delete", namespace)
        for tool in ("iptables", "ip6tables"):
            for table in ("raw", "mangle", "nat", "filter"):
                _remove_rules(tool, table)
        for table in ("nat", "filter"):
            _remove_bridge_rules(table)
        for name in attempt("ipset", "list", "-n").split():
            if _NEUTRON_SET.fullmatch(name):
                attempt("ipset", "destroy", name)
        for name in _links():
            if _NEUTRON_LINK.fullmatch(name):
                attempt("ip", "link", "delete", name)
        output("ip", "link", "delete", BRIDGE)
    _restore_sysctls()


def _remove_rules(tool: str, table: str) -> None:
    """Delete our rules, Neutron's chains, and the rules that lead into them."""
    rules = [shlex.split(line) for line in attempt(tool, "-w", "-t", table, "-S").splitlines()]
    chains = [words[1] for words in rules if words[0] == "-N" and words[1].startswith("neutron-")]
    for words in rules:
        ours = f"--comment {RULE_COMMENT} " in f"{' '.join(words)} " or words[-1] in chains
        if words[0] == "-A" and words[1] not in chains and ours:
            attempt(tool, "-w", "-t", table, "-D", *words[1:])
    for action in ("-F", "-X"):
        for chain in chains:
            attempt(tool, "-w", "-t", table, action, chain)


def _remove_bridge_rules(table: str) -> None:
    """The same for ebtables, whose listing has a head line for each chain and then its rules."""
    chain, rules, chains = "", [], []
    for line in attempt("ebtables", "-t", table, "-L").splitlines():
        if head := re.match(r"Bridge chain: ([^,]+),", line):
            chain = head[1]
            if chain.startswith("neutron"):
                chains.append(chain)
        elif line.startswith("-") and not chain.startswith("neutron"):
            rules.append((chain, line.split()))
    for base, words in rules:
        if any(word.startswith("neutron") for word in words):
            attempt("ebtables", "-t", table, "-D", base, *words)
    for action in ("-F", "-X"):
        for name in chains:
            attempt("ebtables", "-t", table, action, name)


def _restore_sysctls() -> None:
    """Set the kernel's switches back, but leave forwarding on while somebody else translates addresses."""
    if not _SAVED_SYSCTLS.exists():
        return
    others = "-A POSTROUTING" in attempt("iptables", "-w", "-t", "nat", "-S", "POSTROUTING")
    for name, value in json.loads(_SAVED_SYSCTLS.read_text()).items():
        if not (others and name == str(_FORWARDING)):
            Path(name).write_text(f"{value}\n")
    _SAVED_SYSCTLS.unlink()
