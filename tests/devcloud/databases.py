"""The databases of a new cloud: files, schemas, and what the services' own tools put into them."""

from __future__ import annotations

from tests.devcloud.commands import output, run
from tests.devcloud.configuration import DATABASE, KEYSTONE
from tests.devcloud.services import neutron_config
from tests.devcloud.state import DATA, ETC, LOG, MYSQL


def make_files() -> None:
    """Make MariaDB's system tables."""
    options = ("--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db")
    run("mysql_install_db", *options, f"--datadir={MYSQL}", log=LOG / "mysql_install_db.log")


def fill_keystone() -> None:
    """Schema, token keys, the admin user and the identity service's own catalog entry."""
    log = LOG / "keystone-manage.log"
    manage = ("keystone-manage", "--config-file", ETC / "keystone/keystone.conf", "--log-file", log)
    run(*manage, "db_sync", log=log)
    for name in ("fernet", "credential"):
        (DATA / f"{name}-keys").mkdir(mode=0o700, exist_ok=True)
        run(*manage, f"{name}_setup", "--keystone-user", "root", "--keystone-group", "root", log=log)
    admin = [f"--bootstrap-{what}=admin" for what in ("username", "password", "project-name", "role-name")]
    urls = [f"--bootstrap-{interface}-url={KEYSTONE}" for interface in ("admin", "public", "internal")]
    names = ("--bootstrap-service-name=keystone", "--bootstrap-region-id=RegionOne")
    run(*manage, "bootstrap", *admin, *urls, *names, log=log)


def fill_nova() -> None:
    """Schemas of the API database and of both cells, and the cells themselves."""
    log = LOG / "nova-manage.log"
    manage = ("nova-manage", "--config-file", ETC / "nova/nova.conf")
    run(*manage, "api_db", "sync", log=log)
    run(*manage, "cell_v2", "map_cell0", "--database_connection", f"{DATABASE}/nova_cell0", log=log)
    run(*manage, "db", "sync", log=log)
    run(*manage, "cell_v2", "create_cell", "--name", "cell1", log=log)


def map_compute_host() -> None:
    """Make the compute service known to its cell, once it has reported itself."""
    output("nova-manage", "--config-file", ETC / "nova/nova.conf", "cell_v2", "discover_hosts")


def fill_others() -> None:
    """Schemas of Neutron, Glance, Placement and Cinder."""
    run("neutron-db-manage", *neutron_config(), "upgrade", "heads", log=LOG / "neutron-db-manage.log")
    for name, config, words in (
        ("glance-manage", "glance/glance-api.conf", ("db_sync",)),
        ("placement-manage", "placement/placement.conf", ("db", "sync")),
        ("cinder-manage", "cinder/cinder.conf", ("db", "sync")),
    ):
        log = LOG / f"{name}.log"
        run(name, "--config-file", ETC / config, "--log-file", log, *words, log=log)
