"""Tries the credentials of an entry of clouds.yaml and tells who one is there, until when, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from provision.clouds import _credentials
from provision.doctor import Finding
from provision.errors import ProvisionError, UsageError
from provision.redact import register

REQUEST_SECONDS = 20
"""How long each request may take where the entry does not tell."""
CLOCK_SECONDS = 60
"""How far this computer's clock may be from the cloud's: tokens are valid for minutes."""
SOON = timedelta(days=7)
NEEDED = ("compute", "image", "network")
"""The services without which no platform can be made."""
_ADMINISTRATOR = "Ask the administrators of the project for a role on it"


@dataclass
class Login:
    """What is known of an entry.

    Attributes:
        cloud: its name.
        url: its auth_url.
        how: its auth_type, with oidc-agent's account or the application credential.
        user: name, id and domain.
        project: name and id, empty without one.
        roles: on that project.
        until: when each credential ends: `token` (Keystone's), `access token`, `application credential`.
        services: the regions of each service of the catalog.
        projects: those that the user may use, asked for where the entry's does not serve.
        findings: the checks that were made.
    """

    cloud: str
    url: str = ""
    how: str = ""
    user: str = ""
    project: str = ""
    roles: tuple[str, ...] = ()
    until: dict[str, datetime] = field(default_factory=dict)
    services: dict[str, tuple[str, ...]] = field(default_factory=dict)
    projects: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> Finding | None:
        """The first finding that is not good."""
        return next((finding for finding in self.findings if not finding.good), None)

    @property
    def ends(self) -> datetime | None:
        """When the credential ends that cannot be renewed from here, if it does."""
        return self.until.get("application credential")


def examine(cloud: str) -> Login:
    """Log in to a cloud of clouds.yaml, with a new access token where oidc-agent gives them.

    Nothing is changed anywhere. What is wrong is a finding, with its remedy.
    """
    login = Login(cloud)
    try:
        with _credentials.explained(cloud):
            entry = _credentials.read_entry(cloud)
            connection = _credentials.open_connection(entry, REQUEST_SECONDS)
    except ProvisionError as error:
        _wrong(login, "clouds.yaml", error)
        return login
    try:
        _examine(login, _Session(connection))
    finally:
        connection.close()
    return login


class _Session:
    """A connection that is being tried."""

    def __init__(self, connection: Any) -> None:
        self.session = connection.session
        self.plugin = connection.session.auth
        self.entry = connection.config
        self.auth: dict[str, Any] = connection.config.config.get("auth") or {}
        self.kind = str(connection.config.config.get("auth_type") or "password")
        if self.by_agent:
            self.plugin.always_new = True

    @property
    def by_agent(self) -> bool:
        """Whether its access tokens come from oidc-agent."""
        return hasattr(self.plugin, "always_new")

    @property
    def keystone(self) -> str:
        """The root of Keystone's third version."""
        url = str(self.auth.get("auth_url", "")).rstrip("/")
        return url if url.endswith("/v3") else f"{url}/v3"

    def get(self, path: str, **more: Any) -> Any:
        """What Keystone answers, as JSON."""
        return self.session.get(f"{self.keystone}{path}", **more).json()


def _wrong(login: Login, check: str, error: ProvisionError) -> None:
    login.findings.append(Finding(check, False, error.message, error.remedy))


def _examine(login: Login, tried: _Session) -> None:
    from keystoneauth1 import exceptions as keystone

    login.url = str(tried.auth.get("auth_url", ""))
    login.how = _how(tried)
    if not hasattr(tried.plugin, "get_access"):
        login.findings.append(
            Finding("credentials", False, f"Nobody logs in by {tried.kind}.", "Choose another auth_type.")
        )
        return
    try:
        with _credentials.explained(login.cloud):
            answer = tried.session.get(tried.keystone, authenticated=False, raise_exc=False)
    except ProvisionError as error:
        _wrong(login, "reached", error)
        return
    login.findings.append(Finding("reached", True, login.url))
    if clock := clock_finding(answer.headers.get("Date"), datetime.now(UTC)):
        login.findings.append(clock)
    try:
        with _credentials.explained(login.cloud):
            try:
                access = tried.plugin.get_access(tried.session)
            except (keystone.Unauthorized, keystone.NotFound) as error:
                _refused(login, tried, error)
                return
            register(access.auth_token)
            _accepted(login, tried, access)
    except ProvisionError as error:
        _wrong(login, "credentials", error)


def _how(tried: _Session) -> str:
    if tried.by_agent:
        return f"{tried.kind}, account {tried.plugin.account} of oidc-agent"
    for key in ("application_credential_name", "application_credential_id", "username", "user_id"):
        if found := tried.auth.get(key):
            return f"{tried.kind}, {found}"
    return tried.kind


def clock_finding(date: str | None, here: datetime) -> Finding | None:
    """Compare this computer's clock with a server's.

    Args:
        date: the header `Date` of its answer (RFC 9110), if there was one.
        here: the time of this computer.
    """
    try:
        there = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    if there.tzinfo is None:
        return None
    ahead = round((here - there).total_seconds())
    words = f"{abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} the cloud's"
    return Finding(
        "clock",
        abs(ahead) <= CLOCK_SECONDS,
        words if ahead else "as the cloud's",
        "Set this computer's clock, for example with `timedatectl set-ntp true`: tokens seem to end early or late.",
    )


# -------------------------------------------------------------------- accepted


def _accepted(login: Login, tried: _Session, access: Any) -> None:
    login.findings.append(Finding("credentials", True, "accepted"))
    login.user = f"{access.username} ({access.user_id}, domain {access.user_domain_name or access.user_domain_id})"
    login.until["token"] = access.expires
    _access_token(login, tried)
    if tried.kind == "v3applicationcredential":
        _application_credential(login, tried, access)
    if not access.project_id:
        _no_project(login, tried, "The entry names no project.")
        return
    login.project = f"{access.project_name} ({access.project_id})"
    login.roles = tuple(sorted(access.role_names))
    usable = set(login.roles) != {"reader"}
    login.findings.append(
        Finding("project", usable, f"{access.project_name} as {', '.join(login.roles)}", f"{_ADMINISTRATOR}: member.")
    )
    login.services = _services(access)
    login.findings.append(_service_finding(login, str(tried.entry.region_name or "")))


def _access_token(login: Login, tried: _Session) -> None:
    token = tried.plugin.last if tried.by_agent else None
    if token is not None and token.until:
        login.until["access token"] = token.until


def _application_credential(login: Login, tried: _Session, access: Any) -> None:
    """When it ends, and to what it is restricted."""
    from keystoneauth1.exceptions import HttpError

    try:
        listed = tried.get(f"/users/{access.user_id}/application_credentials")["application_credentials"]
    except (HttpError, KeyError):
        login.findings.append(Finding("application credential", True, "the cloud tells nothing of it"))
        return
    identity, name = (tried.auth.get(f"application_credential_{key}") for key in ("id", "name"))
    mine = next((c for c in listed if c["id"] == identity or c["name"] == name), None)
    if mine is None:
        return
    rules = len(mine.get("access_rules") or [])
    restricted = f"; restricted to {rules} kinds of requests" if rules else ""
    if not mine.get("expires_at"):
        login.findings.append(Finding("application credential", True, f"{mine['name']}, without an end{restricted}"))
        return
    until = datetime.fromisoformat(mine["expires_at"]).replace(tzinfo=UTC)
    login.until["application credential"] = until
    left = until - datetime.now(UTC)
    soon = f", in {left.days} days: make another one in time" if left < SOON else ""
    login.findings.append(
        Finding("application credential", True, f"{mine['name']}, until {until:%Y-%m-%d %H:%M}{soon}{restricted}")
    )


def _services(access: Any) -> dict[str, tuple[str, ...]]:
    regions: dict[str, set[str]] = {}
    for service in access.service_catalog.catalog if access.has_service_catalog() else ():
        found = {str(endpoint.get("region_id") or endpoint.get("region")) for endpoint in service.get("endpoints", ())}
        regions.setdefault(str(service["type"]), set()).update(found)
    return {kind: tuple(sorted(regions[kind])) for kind in sorted(regions)}


def _service_finding(login: Login, region: str) -> Finding:
    there = {name for regions in login.services.values() for name in regions}
    if region and there and region not in there:
        return Finding(
            "services",
            False,
            f"The catalog has no region {region}.",
            f"Put one of these into the entry as region_name: {', '.join(sorted(there))}.",
        )
    offered = [kind for kind, regions in login.services.items() if not region or region in regions]
    missing = [kind for kind in NEEDED if kind not in offered]
    where = f" in region {region}" if region else ""
    if missing:
        return Finding(
            "services",
            False,
            f"The catalog lacks {', '.join(missing)}{where}.",
            "Choose another region with region_name, or ask the cloud's administrators.",
        )
    return Finding("services", True, f"{', '.join(offered)}{where}")


# --------------------------------------------------------------------- refused


def _refused(login: Login, tried: _Session, error: Any) -> None:
    """Find out what is wrong with credentials that were not accepted."""
    reasons: dict[str, Callable[[Login, _Session, Any], None]] = {
        _credentials.BY_ACCESS_TOKEN: _refused_access_token,
        "v3applicationcredential": _refused_application_credential,
        "password": _refused_password,
        "v3password": _refused_password,
    }
    _access_token(login, tried)
    reasons.get(tried.kind, _refused_otherwise)(login, tried, error)


def _refused_access_token(login: Login, tried: _Session, error: Any) -> None:
    from keystoneauth1.exceptions import NotFound, Unauthorized

    provider, protocol = tried.auth.get("identity_provider"), tried.auth.get("protocol")
    try:
        unscoped = tried.plugin.get_unscoped_auth_ref(tried.session)
    except NotFound:
        login.findings.append(
            Finding(
                "credentials",
                False,
                f"The cloud knows no identity provider {provider!r} with the protocol {protocol!r}.",
                "Put the site's own names into the entry: identity_provider and protocol; the site's documentation "
                "has them.",
            )
        )
        return
    except Unauthorized as again:
        login.findings.append(_refused_at_the_door(tried) if _by_proxy(again) else _without_group(tried))
        return
    login.user = str(unscoped.username)
    _no_project(login, tried, f"The user {unscoped.username} has no role on the project of the entry.", unscoped)


def _by_proxy(error: Any) -> bool:
    """Whether what refused was not Keystone, but the web server before it, which verifies the token."""
    headers = error.response.headers if error.response is not None else {}
    return "json" not in str(headers.get("Content-Type", ""))


def _refused_at_the_door(tried: _Session) -> Finding:
    token = tried.plugin.last if tried.by_agent else None
    facts = ""
    if token is not None:
        audience = token.claims.get("aud")
        shown = ", ".join(map(str, audience)) if isinstance(audience, list) else audience
        facts = f" It is of the issuer {token.issuer}, for the audience {shown or 'of everybody'}."
    return Finding(
        "credentials",
        False,
        f"The cloud does not accept the access token.{facts}",
        "The site has to trust that issuer under the entry's identity_provider, and the token has to be for the "
        "site's audience (`oidc-gen --aud=AUDIENCE` makes an account for one); check this computer's clock.",
    )


def _without_group(tried: _Session) -> Finding:
    token = tried.plugin.last if tried.by_agent else None
    groups = token.claims.get("wlcg.groups") or token.claims.get("groups") if token else None
    shown = ", ".join(map(str, groups)) if isinstance(groups, list) else ""
    told = f" The token tells of the groups {shown}." if shown else " The token tells of no group."
    return Finding(
        "credentials",
        False,
        f"The cloud verified the access token, but admits nobody with such a one by the protocol "
        f"{tried.auth.get('protocol')!r} of {tried.auth.get('identity_provider')!r}.{told}",
        "Check both names in the entry, join a group of the identity provider that the site admits, and see that the "
        "account of oidc-agent has a scope that shows groups (wlcg.groups).",
    )


def _refused_application_credential(login: Login, tried: _Session, error: Any) -> None:
    gone = getattr(error, "http_status", 0) == 404
    login.findings.append(
        Finding(
            "credentials",
            False,
            "The application credential does not exist any more."
            if gone
            else "The application credential is not accepted: it has expired, its secret is wrong, its user or project "
            "is disabled, or its federated user has not logged in for longer than the site allows.",
            "Log in once as its user, make a new one (`openstack application credential create NAME`), and put it "
            "into clouds.yaml.",
        )
    )


def _refused_password(login: Login, tried: _Session, error: Any) -> None:
    """With the right password, but without a role on the project, the user can log in without a project."""
    from keystoneauth1.exceptions import HttpError
    from keystoneauth1.identity import V3Password

    names = ("username", "user_id", "password", "user_domain_id", "user_domain_name")
    user = {name: tried.auth[name] for name in names if tried.auth.get(name)}
    try:
        unscoped = V3Password(tried.keystone, unscoped=True, **user).get_access(tried.session)
    except HttpError:
        login.findings.append(
            Finding(
                "credentials",
                False,
                "The name or the password is wrong, or the account is locked or has ended.",
                "Check username, user_domain_name and password in clouds.yaml.",
            )
        )
        return
    login.user = str(unscoped.username)
    _no_project(login, tried, f"The user {unscoped.username} has no role on the project of the entry.", unscoped)


def _refused_otherwise(login: Login, tried: _Session, error: Any) -> None:
    known = _credentials.not_accepted(login.cloud)
    login.findings.append(
        Finding("credentials", False, known.message, "Renew the token in clouds.yaml, or use another way to log in.")
    )


def _no_project(login: Login, tried: _Session, words: str, unscoped: Any = None) -> None:
    """Tell which projects the user may use instead."""
    from keystoneauth1.identity import V3Token

    more = {}
    if unscoped is not None:
        register(unscoped.auth_token)
        more["auth"] = V3Token(tried.keystone, token=unscoped.auth_token)
    found = tried.get("/auth/projects", **more)["projects"]
    login.projects = tuple(sorted(f"{project['name']} ({project['id']})" for project in found))
    remedy = (
        f"Put one of these into `auth` of the entry as project_id: {', '.join(login.projects)}."
        if found
        else f"{_ADMINISTRATOR}; there is no other project that this user may use."
    )
    login.findings.append(Finding("project", False, words, remedy))


def as_json(login: Login) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "cloud": login.cloud,
        "good": login.wrong is None,
        "auth_url": login.url,
        "how": login.how,
        "user": login.user,
        "project": login.project,
        "roles": list(login.roles),
        "until": {what: when.isoformat(timespec="seconds") for what, when in login.until.items()},
        "services": {kind: list(regions) for kind, regions in login.services.items()},
        "projects": list(login.projects),
        "findings": [vars(finding) for finding in login.findings],
    }


def examine_all(clouds: Iterable[str]) -> list[Login]:
    """Examine several entries, one after the other.

    Raises:
        UsageError: there is none.
    """
    found = [examine(cloud) for cloud in clouds]
    if not found:
        raise UsageError(_credentials.NO_ENTRY, "docs/clouds.md shows what an entry looks like.")
    return found
