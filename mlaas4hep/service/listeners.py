"""Listening sockets in the network of a sandbox, made from outside before its command runs.

A socket belongs to the network namespace that it was made in, whoever has it open. So the sandbox needs neither a
process of ours nor a right to connect to anything: what it connects to is answered by whoever is given the sockets.
Sources: setns(2), ioctl_ns(2), user_namespaces(7), ip(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from mlaas4hep.errors import MlaasError

_NS_GET_USERNS = 0xB701
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_BACKLOG = 128
# an address may be bound before bubblewrap has given it to the loopback
_IP_FREEBIND = 15
_REASON_BYTES = 4096


def listen_inside(process: int, namespace: int, places: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Listen in the network of a process that this account, or root, has put into namespaces.

    The calling process must have a single thread.

    Args:
        process: its number.
        namespace: the inode of its network namespace.
        places: addresses and ports, at most 200; those below 1024 as well.

    Raises MlaasError when it cannot be done.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as opened:
        try:
            network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, network)
            owner = fcntl.ioctl(network, _NS_GET_USERNS)
            opened.callback(os.close, owner)
        except OSError as error:
            raise _failure(error.strerror) from error
        if os.fstat(network).st_ino != namespace:
            raise _failure("it has ended")
        mine = Path("/proc/self/ns/user").stat().st_ino
        ours, theirs = (opened.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

        def make() -> None:
            if os.fstat(owner).st_ino != mine and libc.setns(owner, _CLONE_NEWUSER):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if libc.setns(network, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            socket.send_fds(theirs, [b"\0"], [_listener(*place).detach() for place in places])

        _in_a_child(make, theirs)
        theirs.close()
        told, descriptors, _, _ = socket.recv_fds(ours, _REASON_BYTES, len(places))
    listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    if len(listeners) != len(places):
        for listener in listeners:
            listener.close()
        raise _failure(told.decode(errors="replace").strip("\0") or "no reason given")
    return listeners


def _listener(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
    listener.bind((address, port))
    listener.listen(_BACKLOG)
    return listener


def _in_a_child(action: Callable[[], None], told: socket.socket) -> None:
    """Do something in a process of its own, because there is no way back from a namespace of users."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except OSError as error:
            told.send((error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _failure(reason: str | None) -> MlaasError:
    return MlaasError(f"The sandbox cannot be given its data endpoints: {reason}.", "See docs/service/executors.md.")
