"""The configuration files: the templates in etc/, with the values of this computer."""

from __future__ import annotations

import re
import shutil

from tests.devcloud import services
from tests.devcloud.commands import DevcloudError
from tests.devcloud.network import BRIDGE, DefaultRoute, name_server
from tests.devcloud.state import DIR, ETC, GROUP, HERE, LIBVIRT

KEYSTONE = f"http://127.0.0.1:{services.KEYSTONE_PORT}/v3"
DATABASE = f"mysql+pymysql://os:os@127.0.0.1:{services.MARIADB_PORT}"


def render(route: DefaultRoute) -> None:
    """Write the configuration of all services.

    Raises:
        DevcloudError: a template asks for a value that there is not.
    """
    values: dict[str, object] = {
        "DIR": DIR,
        "GROUP": GROUP,
        "IP": route.address,
        "MTU": route.mtu,
        "DNS": name_server(),
        "BRIDGE": BRIDGE,
        "KEYSTONE": KEYSTONE,
        "DATABASE": DATABASE,
        "QUEUE": f"rabbit://guest:guest@127.0.0.1:{services.RABBITMQ_PORT}/",
        "GLANCE": f"http://127.0.0.1:{services.GLANCE_PORT}",
        "METADATA": services.METADATA_PORT,
        "RABBITMQ": services.RABBITMQ_PORT,
    }
    templates = HERE / "etc"
    for template in (path for path in sorted(templates.rglob("*")) if path.is_file()):
        text = template.read_text()
        if unknown := set(re.findall(r"@([A-Z]+)@", text)) - values.keys():
            raise DevcloudError(f"{template}: no value for {', '.join(sorted(unknown))}")
        target = ETC / template.relative_to(templates)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(r"@([A-Z]+)@", lambda match: str(values[match[1]]), text))
    # nova-compute may not know the databases ("DB access not allowed"); the rest of Nova needs them
    nova = ETC / "nova"
    (nova / "nova.conf").write_text((nova / "nova-compute.conf").read_text() + (nova / "databases.conf").read_text())
    shutil.copy("/etc/nova/api-paste.ini", nova / "api-paste.ini")
    shutil.copy(ETC / "libvirt/libvirtd.conf", LIBVIRT / "etc/libvirtd.conf")
