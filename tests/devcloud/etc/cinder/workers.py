"""Cinder's scheduler and its volume service in one process, where their own programs would be three."""

from __future__ import annotations

import sys

import eventlet

eventlet.monkey_patch()

from cinder import objects, service, utils, version  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402
from oslo_service import service as oslo_service  # noqa: E402


def main() -> None:
    """Run both until a signal ends them."""
    objects.register_all()
    cfg.CONF(sys.argv[1:], project="cinder", version=version.version_string())
    log.setup(cfg.CONF, "cinder")
    priv_context.init(root_helper=utils.get_root_helper().split())
    backend = cfg.CONF.enabled_backends[0]
    launcher = oslo_service.ServiceLauncher(cfg.CONF)
    launcher.launch_service(service.Service.create(binary="cinder-scheduler"))
    host = f"{cfg.CONF.host}@{backend}"
    launcher.launch_service(
        service.Service.create(host=host, service_name=backend, binary="cinder-volume", coordination=True)
    )
    launcher.wait()


main()
