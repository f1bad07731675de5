"""Keystone behind Apache with mod_auth_openidc: its own process, database and ports, without any other service.

The programs are Debian's. The filled database is kept in .cache, because making its schema takes most of the time.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pwd
import shutil
import sqlite3
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.devcloud import packages
from tests.devcloud.commands import DevcloudError, output
from tests.oidc.provider import AUDIENCE, OidcProvider, free_port, make_certificate

PACKAGES = ("apache2-bin", "keystone", "libapache2-mod-auth-openidc", "libapache2-mod-wsgi-py3")
IDENTITY_PROVIDER = "iam"
PROTOCOLS = {"openid": AUDIENCE, "elsewhere": "https://another.test"}
"""The protocols of the identity provider, and the audience that each demands of a token."""
GROUPS = {"/cms": "cms", "/admins": "admins"}
"""Which group of the tokens is which of Keystone's; the group admins has a role on no project."""
PROJECTS = ("higgs", "physics")
REGIONS = ("bari", "tier1")
_CATALOG = {"compute": "nova", "network": "neutron", "image": "glance"}
_CACHE = Path(__file__).resolve().parents[2] / ".cache"
_USER = "www-data"  # Apache does not serve as root
_SECONDS = 60

_SETTINGS = """
[DEFAULT]
log_file = {folder}/keystone.log
public_endpoint = {url}
[auth]
methods = password,token,openid,application_credential
[cache]
enabled = true
backend = oslo_cache.dict
[credential]
key_repository = {folder}/credential-keys
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_receipts]
key_repository = {folder}/fernet-keys
[fernet_tokens]
key_repository = {folder}/fernet-keys
[identity]
password_hash_rounds = 4
[openid]
remote_id_attribute = HTTP_OIDC_ISS
"""

_SCRIPT = """
import os
os.environ["OS_KEYSTONE_CONFIG_FILES"] = "{folder}/keystone.conf"
from keystone.server.wsgi import initialize_public_application
application = initialize_public_application()
"""

_APACHE = """
ServerRoot {folder}
ServerName 127.0.0.1
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
Mutex file:{folder}
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule ssl_module {modules}/mod_ssl.so
LoadModule auth_openidc_module {modules}/mod_auth_openidc.so
LoadModule wsgi_module {modules}/mod_wsgi.so
ErrorLog {folder}/apache.log
LogLevel info
CustomLog {folder}/access.log "%h %t %r %>s"
SSLEngine on
SSLCertificateFile {folder}/certificate.pem
SSLCertificateKeyFile {folder}/key.pem
# SQLite is not for several threads of Keystone
WSGIDaemonProcess keystone processes=1 threads=1
WSGIProcessGroup keystone
WSGIApplicationGroup %{{GLOBAL}}
WSGIPassAuthorization On
WSGISocketPrefix {folder}/wsgi
WSGIScriptAlias / {folder}/keystone.wsgi
OIDCClaimPrefix "OIDC-"
OIDCClaimDelimiter ";"
OIDCPassClaimsAs both
OIDCOAuthRemoteUserClaim sub
OIDCOAuthVerifyJwksUri {issuer}/jwks
OIDCCABundlePath {folder}/provider.pem
"""

# mod_auth_openidc checks neither issuer nor audience of a token by itself
_PROTOCOL = """
<Location /v3/OS-FEDERATION/identity_providers/{provider}/protocols/{protocol}/auth>
AuthType oauth20
<RequireAll>
Require valid-user
Require claim iss:{issuer}
Require claim aud:{audience}
</RequireAll>
</Location>
"""


@dataclass
class Keystone:
    """A running Keystone.

    Attributes:
        url: its auth_url.
        ca_file: the certificate to verify it with.
        folder: its database and logs.
    """

    url: str
    ca_file: Path
    folder: Path

    def entry(self, protocol: str = "openid", **scope: str) -> dict[str, Any]:
        """An entry of clouds.yaml for users of the identity provider."""
        auth = {"auth_url": self.url, "identity_provider": IDENTITY_PROVIDER, "protocol": protocol, **scope}
        return {"auth_type": "v3oidcaccesstoken", "auth": auth, "cacert": str(self.ca_file), "region_name": "bari"}

    def administrator(self) -> Any:
        """A connection (openstack.connection.Connection) of its administrator."""
        import openstack

        auth = {"auth_url": self.url, "username": "admin", "password": "admin", "project_name": "admin"}
        auth |= {"user_domain_id": "default", "project_domain_id": "default"}
        settings = {"load_yaml_config": False, "load_envvars": False, "cacert": str(self.ca_file)}
        return openstack.connect(auth=auth, **settings)

    def change(self, statement: str, *values: object) -> None:
        """Change the database behind Keystone's back, as time does."""
        with closing(sqlite3.connect(self.folder / "keystone.db", timeout=30)) as database, database:
            assert database.execute(statement, values).rowcount == 1

    def logs(self) -> str:
        """All that Keystone and Apache have logged."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


def lacking_packages(*more: str) -> str:
    """Why Keystone cannot be started here, or "".

    Args:
        more: further Debian packages that a test needs.
    """
    names = (*PACKAGES, *more)
    try:
        missing = packages.missing(names)
        if missing and os.geteuid() != 0:
            return f"needs the Debian packages {' and '.join(missing)}"
        if missing:
            packages.install(missing)
    except (DevcloudError, OSError) as error:
        return f"the Debian packages {' and '.join(names)} cannot be installed: {error}"
    return ""


@contextmanager
def federated_keystone(provider: OidcProvider) -> Iterator[Keystone]:
    """Keystone that trusts a provider, with users' groups, projects and a catalog."""
    with tempfile.TemporaryDirectory(prefix="keystone-") as name:
        keystone = _prepare(Path(name), provider)
        log = (keystone.folder / "output.log").open("ab")
        program = shutil.which("apache2", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program
        user = {"user": _USER, "group": _USER, "extra_groups": []} if os.geteuid() == 0 else {}
        process = subprocess.Popen(
            [program, "-D", "FOREGROUND", "-f", str(keystone.folder / "apache.conf")],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": name, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **user,
        )
        try:
            _wait(keystone, process)
            _fill(keystone, provider)
            yield keystone
        finally:
            process.terminate()
            process.wait()
            log.close()


def _prepare(folder: Path, provider: OidcProvider) -> Keystone:
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    shutil.copytree(_filled_once(), folder, dirs_exist_ok=True)
    make_certificate(folder / "certificate.pem", folder / "key.pem")
    shutil.copy(provider.ca_file, folder / "provider.pem")
    modules = "/usr/lib/apache2/modules"
    values = {"folder": folder, "port": port, "url": url, "issuer": provider.issuer, "modules": modules}
    apache = _APACHE.format(**values) + "".join(
        _PROTOCOL.format(provider=IDENTITY_PROVIDER, protocol=protocol, audience=audience, issuer=provider.issuer)
        for protocol, audience in PROTOCOLS.items()
    )
    for file, text in (("keystone.conf", _SETTINGS), ("keystone.wsgi", _SCRIPT)):
        (folder / file).write_text(text.format(**values))
    (folder / "apache.conf").write_text(apache)
    with closing(sqlite3.connect(folder / "keystone.db")) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("UPDATE endpoint SET url = ?", (f"{url}/v3",))
    if os.geteuid() == 0:
        account = pwd.getpwnam(_USER)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
    return Keystone(f"{url}/v3", folder / "certificate.pem", folder)


def _filled_once() -> Path:
    """A folder with Keystone's keys and a database that has its schema and an administrator."""
    version = output("dpkg-query", "-W", "keystone")
    folder = _CACHE / f"keystone-{hashlib.sha256(f'{version} {REGIONS[0]}'.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="keystone-") as name:
        made = Path(name) / "made"
        made.mkdir(mode=0o700)
        settings = Path(name) / "keystone.conf"
        settings.write_text(_SETTINGS.format(folder=made, url="https://127.0.0.1"))
        manage = ("keystone-manage", "--config-file", settings)
        output(*manage, "db_sync")
        me = pwd.getpwuid(os.geteuid()).pw_name
        for kind in ("fernet", "credential"):
            (made / f"{kind}-keys").mkdir(mode=0o700)
            output(*manage, f"{kind}_setup", "--keystone-user", me, "--keystone-group", me)
        words = [f"--bootstrap-{what}=admin" for what in ("username", "password", "project-name", "role-name")]
        words += ["--bootstrap-public-url=https://127.0.0.1", f"--bootstrap-region-id={REGIONS[0]}"]
        output(*manage, "bootstrap", *words)
        (made / "keystone.log").unlink(missing_ok=True)
        if not folder.exists():  # another run of the tests may have been quicker
            made.rename(folder)
    return folder


def _wait(keystone: Keystone, process: subprocess.Popen[bytes]) -> None:
    """Wait until Keystone answers."""
    context = ssl.create_default_context(cafile=keystone.ca_file)
    place = keystone.url.removeprefix("https://").partition("/")[0]
    deadline = time.monotonic() + _SECONDS
    while True:
        connection = http.client.HTTPSConnection(place, timeout=_SECONDS, context=context)
        try:
            connection.request("GET", "/v3")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        assert process.poll() is None and time.monotonic() < deadline, keystone.logs()[-3000:]
        time.sleep(0.05)


def _fill(keystone: Keystone, provider: OidcProvider) -> None:
    """Groups, projects, the catalog, and the trust in the provider."""
    connection = keystone.administrator()
    identity = connection.identity
    groups = {name: identity.create_group(name=name, domain_id="default") for name in GROUPS.values()}
    member = identity.find_role("member", ignore_missing=False)
    for name in PROJECTS:
        project = identity.create_project(name=name, domain_id="default")
        identity.assign_project_role_to_group(project, groups["cms"], member)
    identity.create_region(id=REGIONS[1])
    for kind, name in _CATALOG.items():
        service = identity.create_service(name=name, type=kind)
        for region in REGIONS:
            url = f"https://{region}.test/{kind}"
            identity.create_endpoint(service_id=service.id, interface="public", url=url, region_id=region)
    # without a time to live, application credentials of federated users are refused
    identity.create_identity_provider(
        id=IDENTITY_PROVIDER, remote_ids=[provider.issuer], is_enabled=True, authorization_ttl=60
    )
    identity.create_mapping(id=IDENTITY_PROVIDER, rules=[_rule(*pair) for pair in GROUPS.items()])
    for protocol in PROTOCOLS:
        identity.create_federation_protocol(id=protocol, idp_id=IDENTITY_PROVIDER, mapping_id=IDENTITY_PROVIDER)
    connection.close()


def _rule(group: str, local: str) -> dict[str, Any]:
    # a claim whose name has a dot reaches Keystone under its own name alone
    remote = [{"type": "HTTP_OIDC_SUB"}, {"type": "OIDC-wlcg.groups", "any_one_of": [group]}]
    return {
        "local": [{"user": {"name": "{0}"}}, {"group": {"name": local, "domain": {"id": "default"}}}],
        "remote": remote,
    }
