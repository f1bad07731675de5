"""The network of this computer's machines: a namespace, a pair of links and address translation for each.

Everything bears the platform's uid in its name or comment, so that exactly this is found again and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.clouds._computer import run
from provision.errors import ProvisionError, UsageError

RANGE_VARIABLE = "PROVISION_LOCAL_RANGE"
# the range for benchmarks (RFC 2544) is routed nowhere, but some proxies answer names with it; then private ones
RANGES = ("198.18.0.0/15", "172.29.0.0/16", "10.213.0.0/16", "192.168.213.0/24")
STATE = Path("/run/provision")  # like the network itself, it is gone when this computer is started again
CONF = Path("/proc/sys/net/ipv4/conf")

_RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_TABLES = ("nat", "filter")
_SLOT = 30  # prefix length of one machine's network: two addresses


@dataclass(frozen=True)
class Wire:
    """One machine's connection: `network` holds this computer's end and the machine's."""

    uid: str
    network: ipaddress.IPv4Network

    @property
    def gateway(self) -> str:
        """The address of this computer's end."""
        return str(self.network[1])

    @property
    def address(self) -> str:
        """The address of the machine."""
        return str(self.network[2])


def namespace(uid: str) -> str:
    """Name of the machine's network namespace."""
    return f"provision-{uid}"


def link(uid: str) -> str:
    """Name of this computer's end of the pair of links (at most 15 characters)."""
    return f"pv-{uid}"


def _tag(uid: str) -> str:
    return f"provision-{uid}"


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Exclude other users' commands on this computer's network, too."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    with (STATE / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _ip(*words: str) -> Any:
    return json.loads(run("ip", "-j", *words).strip() or "[]")


def _there(name: str) -> bool:
    return (Path("/sys/class/net") / name).exists()


def default_route() -> tuple[str, int]:
    """Interface and MTU (bytes) of this computer's way out; raises ProvisionError when there is none."""
    routes = sorted(_ip("-4", "route", "show", "default"), key=lambda route: route.get("metric", 0))
    if not routes:
        raise ProvisionError(
            "This computer has no IPv4 default route, so that a machine on it could not reach the package registries.",
            "Connect it to a network.",
        )
    device = routes[0]["dev"]
    return device, int(_ip("link", "show", "dev", device)[0]["mtu"])


def resolver() -> str:
    """What stands in a machine's resolv.conf; raises ProvisionError when this computer's resolver serves it alone."""
    for path in _RESOLVERS:
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in path.read_text().splitlines()]
            servers = [line for line in lines if re.match(r"nameserver\s+(?!127\.)[0-9.]+$", line)]
            if servers:
                return "\n".join([*servers, *(line for line in lines if line.startswith(("search ", "options "))), ""])
    raise ProvisionError(
        f"{_RESOLVERS[0]} names no IPv4 name server that a machine could reach (127.x serves this computer alone).",
        "Add a `nameserver` line with the network's own name server.",
    )


def choose_range(hosts: Iterable[str]) -> ipaddress.IPv4Network:
    """The first range that this computer neither routes to nor resolves names of `hosts` into, or that of the variable.

    Raises UsageError for a wrong value of the variable, ProvisionError when no range is free.
    """
    wanted = os.environ.get(RANGE_VARIABLE)
    try:
        ranges = [ipaddress.IPv4Network(text) for text in ([wanted] if wanted else RANGES)]
    except ValueError as error:
        raise UsageError(f"{RANGE_VARIABLE}: {error}.", "Write an IPv4 network, for instance 198.18.0.0/15.") from None
    if ranges[0].prefixlen > _SLOT:
        raise UsageError(f"{RANGE_VARIABLE}: {ranges[0]} has no room for a machine.", f"Write a /{_SLOT} or larger.")
    routes, why = _routes(), []
    used = {address for host in hosts for address in _addresses(host)}
    used.update(word for line in resolver().splitlines() if line.startswith("nameserver") for word in line.split()[1:])
    for network in ranges:
        hits = [f"{route} is routed" for route in routes if network.subnet_of(route)]
        hits += [f"{address} is in use" for address in sorted(used) if ipaddress.ip_address(address) in network]
        if not hits:
            return network
        why.append(f"{network}: {hits[0]}")
    raise ProvisionError(
        f"No address range is free for a machine on this computer ({'; '.join(why)}).",
        f"Set {RANGE_VARIABLE} to one that is, for instance 10.99.0.0/16.",
    )


def _addresses(host: str) -> set[str]:
    with contextlib.suppress(OSError, UnicodeError):
        return {str(found[4][0]) for found in socket.getaddrinfo(host, 80, socket.AF_INET, socket.SOCK_STREAM)}
    return set()


def _routes() -> list[ipaddress.IPv4Network]:
    """The networks that this computer routes to, without default routes (a VPN's may be two halves)."""
    names = [route["dst"] for route in _ip("-4", "route", "show", "table", "all") if route["dst"] != "default"]
    return [network for network in map(ipaddress.IPv4Network, names) if network.prefixlen > 1]


def _choose_slot(uid: str, space: ipaddress.IPv4Network) -> ipaddress.IPv4Network:
    """A machine's own part of the range: decided by the uid, the next one when that is routed."""
    routes = _routes()
    count = 2 ** (_SLOT - space.prefixlen)
    for number in range(count):
        first = int(space.network_address) + 4 * ((int(uid, 36) + number) % count)
        slot = ipaddress.IPv4Network((first, _SLOT))
        if not any(slot.overlaps(route) for route in routes):
            return slot
    raise ProvisionError(f"All {count} networks of {space} are taken.", f"Set {RANGE_VARIABLE} to a larger range.")


def _rules(wire: Wire, device: str) -> list[tuple[str, list[str]]]:
    own, comment = link(wire.uid), ["-m", "comment", "--comment", _tag(wire.uid)]
    back = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    # -o keeps traffic between bridges of this computer untranslated; ACCEPT matters where the policy is DROP
    return [
        ("nat", ["POSTROUTING", "-s", f"{wire.address}/32", "-o", device, *comment, "-j", "MASQUERADE"]),
        ("filter", ["FORWARD", "-i", own, *comment, "-j", "ACCEPT"]),
        ("filter", ["FORWARD", "-o", own, *back, *comment, "-j", "ACCEPT"]),
    ]


def _tagged(uid: str) -> Iterator[tuple[str, list[str]]]:
    """The rules that bear the uid, as (table, words)."""
    for table in _TABLES:
        for line in run("iptables-save", "-t", table).splitlines():
            words = shlex.split(line) if line.startswith("-A ") else []
            if _tag(uid) in words:
                yield table, words[1:]


def _has_rule(table: str, rule: list[str]) -> bool:
    with contextlib.suppress(ProvisionError):
        run("iptables", "-w", "-t", table, "-C", *rule)
        return True
    return False


def _linked(wire: Wire) -> bool:
    """True when the namespace, both ends of the link, their addresses and the machine's default route are there."""
    uid = wire.uid
    with contextlib.suppress(ProvisionError):
        outer = _ip("-4", "addr", "show", "dev", link(uid), "up")
        inner = _ip("-n", namespace(uid), "-4", "addr", "show", "dev", "host0", "up")
        route = _ip("-n", namespace(uid), "-4", "route", "show", "default")
        found = [address["local"] for end in (outer, inner) for one in end for address in one.get("addr_info", [])]
        return found == [wire.gateway, wire.address] and [r.get("gateway") for r in route] == [wire.gateway]
    return False


def connected(wire: Wire) -> bool:
    """True when the machine's connection is complete, as this computer's kernel says."""
    device, _ = default_route()
    return (
        _linked(wire)
        and all(_has_rule(table, rule) for table, rule in _rules(wire, device))
        and (CONF / link(wire.uid) / "forwarding").read_text().strip() == "1"
        and _holds(device, wire.uid)
    )


def connect(uid: str, space: ipaddress.IPv4Network, earlier: Wire | None) -> Wire:
    """Make the connection, or what is missing of it, and return it; `earlier` is kept unless somebody has taken it."""
    device, mtu = default_route()
    with _lock():
        wire = earlier
        if not (wire and _linked(wire)):
            _unlink(uid)
            taken = wire and any(wire.network.overlaps(route) for route in _routes())
            wire = Wire(uid, _choose_slot(uid, space)) if wire is None or taken else wire
            _link(wire, mtu)
        _remove_rules(uid)
        for table, (chain, *rule) in _rules(wire, device):
            run("iptables", "-w", "-t", table, "-I", chain, *rule)
        (CONF / link(uid) / "forwarding").write_text("1\n")
        _release(uid, but=device)
        _hold(device, uid)
    return wire


def _link(wire: Wire, mtu: int) -> None:
    uid, space = wire.uid, namespace(wire.uid)
    size = ("mtu", str(mtu))
    run("ip", "netns", "add", space)
    run("ip", "link", "add", link(uid), *size, "type", "veth", "peer", "name", "host0", *size, "netns", space)
    run("ip", "addr", "add", f"{wire.gateway}/{_SLOT}", "dev", link(uid))
    run("ip", "link", "set", link(uid), "up")
    run("ip", "-n", space, "addr", "add", f"{wire.address}/{_SLOT}", "dev", "host0")
    run("ip", "-n", space, "link", "set", "lo", "up")
    run("ip", "-n", space, "link", "set", "host0", "up")
    run("ip", "-n", space, "route", "add", "default", "via", wire.gateway)


def _unlink(uid: str) -> None:
    if _there(link(uid)):
        run("ip", "link", "del", link(uid))
    if path(uid).exists():
        run("ip", "netns", "del", namespace(uid))


def _remove_rules(uid: str) -> None:
    for table, rule in list(_tagged(uid)):
        run("iptables", "-w", "-t", table, "-D", *rule)


def path(uid: str) -> Path:
    """The file that stands for the machine's network namespace."""
    return Path("/run/netns") / namespace(uid)


def traces(uid: str) -> list[str]:
    """What there is of the machine's connection, complete or not."""
    found = [f"namespace {namespace(uid)}"] if path(uid).exists() else []
    found += [f"link {link(uid)}"] if _there(link(uid)) else []
    found += [f"iptables {table} {rule[0]}" for table, rule in _tagged(uid)]
    return found + [f"forwarding of {holder.parent.name}" for holder in STATE.glob(f"forwarding/*/{uid}")]


def disconnect(uid: str) -> None:
    """Remove the machine's connection; raises ProvisionError when some of it stays."""
    with _lock():
        _unlink(uid)
        _remove_rules(uid)
        _release(uid)
    if left := traces(uid):
        raise ProvisionError(f"The network of machine {namespace(uid)} is not gone: {', '.join(left)}.")


def _holds(device: str, holder: str) -> bool:
    kept = (STATE / "forwarding" / device / holder).exists()
    return kept and (CONF / device / "forwarding").read_text().strip() == "1"


def _hold(device: str, holder: str) -> None:
    """Let `device` forward packets as long as the holder, or another one, needs it.

    The switch of this interface alone: others may set or restore the whole computer's (`ip_forward`) meanwhile.
    """
    state, switch = STATE / "forwarding" / device, CONF / device / "forwarding"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (state / ".before").exists():
        (state / ".new").write_text(switch.read_text())
        (state / ".new").replace(state / ".before")
    (state / holder).touch()
    switch.write_text("1\n")


def _release(holder: str, but: str = "") -> None:
    """Give up what the holder has of other interfaces than `but`; the last one sets the switch back."""
    for kept in STATE.glob(f"forwarding/*/{holder}"):
        state, switch = kept.parent, CONF / kept.parent.name / "forwarding"
        if state.name == but:
            continue
        others = [other for other in state.iterdir() if other != kept and not other.name.startswith(".")]
        # when the whole computer forwards now, somebody else has switched that on and needs it
        if not others and switch.exists() and (CONF / "all/forwarding").read_text().strip() == "0":
            switch.write_text((state / ".before").read_text())
        if others:
            kept.unlink()
        else:
            shutil.rmtree(state)
