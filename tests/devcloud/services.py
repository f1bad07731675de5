"""The daemons of the cloud: how each is started, and when it is ready.

Why they are started as they are:

- nova-compute mounts the root file systems of servers and libvirt must see them, so it lives in libvirtd's mount
  namespace. After an outage of libvirtd only `down` and `up` bring servers back.
- Nova is patched by eventlet: under uwsgi it must have one thread a process, or a few concurrent requests stop it for
  ever ("greenlet.error: cannot switch to a different thread").
- uwsgi opens its port seconds before the application behind it is loaded: ready is what answers a request.
- MariaDB, RabbitMQ and dnsmasq stay root, since as another user they could not reach a state below a private home
  directory. RabbitMQ is started without Debian's wrapper, which would change the user.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from dataclasses import dataclass

from tests.devcloud import processes
from tests.devcloud.commands import DevcloudError, attempt
from tests.devcloud.progress import until
from tests.devcloud.state import ETC, LOG, MYSQL, RABBITMQ, RUN

MARIADB_PORT, RABBITMQ_PORT = 3307, 5673
KEYSTONE_PORT, PLACEMENT_PORT, GLANCE_PORT = 5000, 8778, 9292
NOVA_PORT, METADATA_PORT, CINDER_PORT, NEUTRON_PORT = 8774, 8775, 8776, 9696
_CINDER_CONFIG = ETC / "cinder/cinder.conf"
NEUTRON_AGENTS = ("linuxbridge", "dhcp", "l3", "metadata")


def listening(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answering(port: int) -> bool:
    """Whether an HTTP server on this port of 127.0.0.1 answers without an error of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(frozen=True)
class Service:
    """A daemon: its command line, the port it serves, and the test that tells when it is ready."""

    command: Callable[[], list[object]]
    port: int | None = None
    is_ready: Callable[[int], bool] = answering


def neutron_config(*names: str) -> list[object]:
    """The options that name Neutron's configuration files."""
    return [word for name in ("neutron.conf", "ml2.ini", *names) for word in ("--config-file", ETC / "neutron" / name)]


def _mariadb() -> list[object]:
    return [
        *("mariadbd", "--no-defaults", "--user=root", f"--datadir={MYSQL}", f"--init-file={ETC}/databases.sql"),
        *(f"--port={MARIADB_PORT}", "--bind-address=127.0.0.1", f"--socket={RUN}/mysql.sock"),
        *(f"--pid-file={RUN}/mysql.pid", "--skip-name-resolve", "--max-connections=500"),
        *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=256M", "--character-set-server=utf8mb3"),
    ]


def _rabbitmq() -> list[object]:
    settings = {
        "HOME": RABBITMQ,
        "RABBITMQ_NODENAME": "devcloud@localhost",
        "RABBITMQ_MNESIA_BASE": RABBITMQ / "mnesia",
        "RABBITMQ_LOG_BASE": RABBITMQ / "log",
        "RABBITMQ_CONFIG_FILE": ETC / "rabbitmq",
        "RABBITMQ_ENABLED_PLUGINS_FILE": RABBITMQ / "plugins",
        "RABBITMQ_DIST_PORT": 25673,
        "ERL_EPMD_PORT": 14369,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
    }
    return ["env", *(f"{name}={value}" for name, value in settings.items()), "/usr/lib/rabbitmq/bin/rabbitmq-server"]


def _uwsgi(script: str, port: int, processes: int, threads: int, *options: object) -> Service:
    command: list[object] = [
        *("uwsgi_python3", "--http-socket", f"127.0.0.1:{port}", "--wsgi-file", f"/usr/bin/{script}"),
        *("--master", "--processes", processes, "--threads", threads, "--enable-threads", "--lazy-apps"),
        *("--die-on-term", "--no-orphans", "--thunder-lock", "--buffer-size", 65535, "--disable-logging"),
        *("--rem-header", "Content-Length", "--add-header", "Connection: close", *options),
    ]
    return Service(lambda: command, port)


def _nova(program: str) -> Service:
    return Service(lambda: [program, "--config-file", ETC / "nova/nova.conf"])


def _libvirtd() -> list[object]:
    return ["unshare", "--mount", "--propagation", "private", "sh", ETC / "libvirt/start.sh"]


def _beside_libvirtd() -> list[object]:
    pid = processes.pid("libvirtd")
    if pid is None:
        raise DevcloudError("libvirtd does not run")
    return ["nsenter", "--mount", "--target", pid]


def _nova_compute() -> list[object]:
    program = ("/usr/bin/python3", ETC / "nova/compute.py", "--config-file", ETC / "nova/nova-compute.conf")
    return [*_beside_libvirtd(), *program]


def _cinder_workers() -> list[object]:
    # the driver lies beside the program, so Python finds it
    return ["/usr/bin/python3", ETC / "cinder/workers.py", "--config-file", _CINDER_CONFIG]


def _neutron_agent(name: str) -> Service:
    program = f"neutron-{name}-agent"
    return Service(lambda: [program, *neutron_config(f"{name}.ini"), "--log-file", LOG / f"{program}.log"])


SERVICES: dict[str, Service] = {
    "mariadb": Service(_mariadb, MARIADB_PORT, listening),
    "rabbitmq": Service(_rabbitmq, RABBITMQ_PORT, listening),
    "keystone": _uwsgi("keystone-wsgi-public", KEYSTONE_PORT, processes=2, threads=4),
    "placement": _uwsgi("placement-api", PLACEMENT_PORT, processes=1, threads=4),
    "glance": Service(lambda: ["glance-api", "--config-file", ETC / "glance/glance-api.conf"], GLANCE_PORT),
    "nova-api": _uwsgi("nova-api-wsgi", NOVA_PORT, processes=3, threads=1),
    "nova-metadata": _uwsgi("nova-metadata-wsgi", METADATA_PORT, processes=2, threads=1),
    "nova-conductor": _nova("nova-conductor"),
    "nova-scheduler": _nova("nova-scheduler"),
    "neutron-server": Service(lambda: ["neutron-server", *neutron_config()], NEUTRON_PORT),
    "cinder-api": _uwsgi("cinder-wsgi", CINDER_PORT, 1, 4, "--pyargv", f"--config-file {_CINDER_CONFIG}"),
    "cinder-workers": Service(_cinder_workers),
    "libvirtd": Service(_libvirtd),
    "nova-compute": Service(_nova_compute),
    **{f"neutron-{name}-agent": _neutron_agent(name) for name in NEUTRON_AGENTS},
}


def start(*names: str) -> None:
    """Start these services without waiting for them."""
    for name in names:
        processes.start(name, SERVICES[name].command())


def wait_for(*names: str) -> None:
    """Wait until these services are ready.

    Raises:
        DevcloudError: one ended meanwhile, or is not ready in time.
    """
    for name in names:
        service = SERVICES[name]
        if service.port is not None:
            _wait(name, service.is_ready, service.port)


def _wait(name: str, is_ready: Callable[[int], bool], port: int) -> None:
    def test() -> bool:
        if processes.pid(name) is None:
            raise DevcloudError(f"{name} ended while it was starting", processes.log_file(name))
        return is_ready(port)

    until(f"{name} on port {port}", test, processes.log_file(name))


def running() -> list[str]:
    """The services that run."""
    return [name for name in SERVICES if processes.pid(name) is not None]


def virsh(*words: str) -> str:
    """What virsh prints when it asks the cloud's libvirtd; empty when that one does not run."""
    if processes.pid("libvirtd") is None:
        return ""
    return attempt(*_beside_libvirtd(), "virsh", "-c", "lxc:///", *words)


def servers() -> list[str]:
    """Names that libvirt has for the servers that run."""
    return [name for name in virsh("list", "--name").split() if name.startswith("instance-")]
