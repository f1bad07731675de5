"""Connections to the clouds of clouds.yaml: opened and authorised here, and what fails is explained.

An entry logs in by password, application credential, token, or with an access token of the user's identity provider.
The last comes from oidc-agent for each login (`_oidc_agent`), where the entry has `oidc_agent_account`, or the
environment OIDC_ACCOUNT; it is never written anywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from provision.errors import ProvisionError, UsageError
from provision.redact import register

ACCOUNT = "oidc_agent_account"
"""The key of an entry that names its account of oidc-agent."""
ACCOUNT_VARIABLE = "OIDC_ACCOUNT"
NO_ENTRY = "There is no clouds.yaml, or it has no entry."
BY_ACCESS_TOKEN = "v3oidcaccesstoken"  # noqa: S105  (the name of a way to log in)
_SECRETS = ("password", "application_credential_secret", "access_token", "token", "passcode", "client_secret")


class _Told(logging.Handler):
    """Keeps what the SDK tells of a file that it cannot read; to its caller such a file is as one that is not there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.text = " ".join(record.getMessage().split())[:400]


def clouds() -> list[str]:
    """The names of the entries of clouds.yaml.

    Raises:
        UsageError: the file cannot be read.
    """
    from openstack import config
    from openstack.exceptions import ConfigException

    told, log = _Told(), logging.getLogger("openstack.config")
    log.addHandler(told)
    try:
        loader = config.OpenStackConfig()
    except ConfigException as error:
        raise UsageError(f"clouds.yaml cannot be used: {words(error)}.") from None
    finally:
        log.removeHandler(told)
    if loader.config_filename:
        return [str(name) for name in loader.get_cloud_names()]
    if told.text:
        raise UsageError(f"clouds.yaml cannot be used: {told.text}.")
    return []


def parted(cloud: str) -> tuple[str, str]:
    """Entry and region of `NAME` or `NAME/REGION`; the region is "" where it is the entry's own.

    Raises:
        UsageError: there is no such entry.
    """
    known = clouds()
    name, _, region = cloud.rpartition("/") if "/" in cloud and cloud not in known else (cloud, "", "")
    if name not in known:
        raise UsageError(
            f"There is no cloud {name!r}; clouds.yaml has: {', '.join(sorted(known))}."
            if known
            else f"There is no cloud {name!r}: {NO_ENTRY[0].lower()}{NO_ENTRY[1:]}",
            "`--cloud local` makes the platform on this computer; docs/clouds.md shows what an entry looks like.",
        )
    return name, region


def agent_account(entry: dict[str, Any]) -> str:
    """The account of oidc-agent by which an entry (its raw `config`) logs in; "" for an entry that needs none."""
    if entry.get("auth_type") != BY_ACCESS_TOKEN:
        return ""
    return str(entry.get(ACCOUNT) or os.environ.get(ACCOUNT_VARIABLE) or "")


def read_entry(cloud: str) -> Any:
    """An entry of clouds.yaml, of one region, as openstack.config.cloud_region.CloudRegion; no cloud is asked.

    Its secrets are masked from now on.

    Raises:
        UsageError: there is no such entry or region, or it cannot be used.
    """
    from openstack import config
    from openstack.exceptions import ConfigException

    name, region = parted(cloud)
    which = {"cloud": name} | ({"region_name": region} if region else {})
    try:
        loader = config.OpenStackConfig()
        raw = loader.get_one(**which, validate=False).config
        for key in _SECRETS:
            register(str((raw.get("auth") or {}).get(key) or ""))
        if account := agent_account(raw):
            return _with_agent(loader, which, account)
        if raw.get("auth_type") == BY_ACCESS_TOKEN and not (raw.get("auth") or {}).get("access_token"):
            raise UsageError(
                f"The entry {cloud!r} of clouds.yaml does not tell where its access token comes from.",
                f"Add `{ACCOUNT}: NAME` beside auth_type, with an account of oidc-agent, or set {ACCOUNT_VARIABLE}.",
            )
        return loader.get_one(**which)
    except ConfigException as error:
        raise UsageError(f"clouds.yaml cannot be used for {cloud!r}: {words(error)}.") from None


def _with_agent(loader: Any, which: dict[str, str], account: str) -> Any:
    from openstack.config.cloud_region import CloudRegion

    from provision.clouds._oidc_agent import AgentLogin

    # the loader demands a token of this kind of entry; the plugin that has it is left aside
    found = loader.get_one(**which, auth={"access_token": "of oidc-agent"})
    return CloudRegion(
        name=found.name,
        region_name=found.region_name,
        config=found.config,
        auth_plugin=AgentLogin(account, **found.config["auth"]),
        openstack_config=loader,
    )


def open_connection(entry: Any, seconds: float) -> Any:
    """The SDK's connection of an entry, not yet authorised.

    Args:
        entry: of `read_entry`.
        seconds: how long a request may take where the entry does not tell (`api_timeout`).
    """
    from openstack.connection import Connection

    entry.config["api_timeout"] = entry.config.get("api_timeout") or seconds
    return Connection(config=entry, app_name="provision")


def connect(cloud: str, seconds: float) -> Any:
    """A connection (openstack.connection.Connection) to a cloud of clouds.yaml, made and authorised.

    When Keystone's token ends in the middle of the work, the request that finds out is repeated with a new one.

    Args:
        cloud: the entry.
        seconds: how long a request may take where the entry does not tell (`api_timeout`).

    Raises:
        UsageError: there is no such entry, it cannot be used, or it names no project.
        ProvisionError: the credentials are not accepted, or oidc-agent gives no access token.
        keystoneauth1.exceptions.ClientException: the cloud does not answer; see `explained`.
    """
    from keystoneauth1 import exceptions as keystone

    connection = open_connection(read_entry(cloud), seconds)
    try:
        register(connection.session.get_token())
    except keystone.NotFound as error:
        # Keystone's answer to a deleted application credential and to a revoked token
        if "application credential" in str(error).lower() or "token" in str(error).lower():
            raise not_accepted(cloud) from None
        raise
    if not connection.session.get_project_id():
        raise UsageError(
            f"The entry {cloud!r} of clouds.yaml names no project.",
            f"`provision login {cloud}` lists those to choose from.",
        )
    return connection


@contextmanager
def explained(cloud: str) -> Iterator[None]:
    """Turn the SDK's exceptions into one sentence and a remedy."""
    from keystoneauth1 import exceptions as keystone
    from openstack import exceptions as sdk

    try:
        yield
    except keystone.Unauthorized:
        raise not_accepted(cloud) from None
    except (keystone.MissingRequiredOptions, keystone.MissingAuthPlugin, keystone.NoMatchingPlugin) as error:
        raise UsageError(f"The entry {cloud!r} of clouds.yaml is incomplete: {words(error)}.") from None
    except keystone.SSLError as error:
        raise ProvisionError(
            f"The certificate of the cloud {cloud!r} is not trusted: {words(error)}.",
            "Name the site's authority with `cacert: FILE` in its entry of clouds.yaml; check this computer's clock.",
        ) from None
    except (keystone.ConnectFailure, keystone.DiscoveryFailure, keystone.RetriableConnectionFailure) as error:
        raise ProvisionError(
            f"The cloud {cloud!r} cannot be reached: {words(error)}.",
            "Check auth_url in clouds.yaml, your network or VPN, and whether the site is up; then run it again.",
        ) from None
    except keystone.EndpointNotFound as error:
        raise ProvisionError(f"The cloud {cloud!r} lacks a service that is needed: {words(error)}.") from None
    except sdk.ForbiddenException as error:
        hint = "Ask for more quota, choose less, or delete what is not needed." if "uota" in words(error) else ""
        raise ProvisionError(f"The cloud {cloud!r} forbids it: {words(error)}.", hint) from None
    except (sdk.SDKException, keystone.ClientException) as error:
        if getattr(error, "status_code", None) == 401:
            raise not_accepted(cloud) from None
        raise ProvisionError(f"The cloud {cloud!r} answered with an error: {words(error)}.") from None


def not_accepted(cloud: str) -> ProvisionError:
    """The error of credentials that the cloud refuses."""
    return ProvisionError(
        f"The cloud {cloud!r} does not accept the credentials: they are wrong or have expired.",
        f"Renew them in clouds.yaml (application credential, password or token) and try again; "
        f"`provision login {cloud}` tells more.",
    )


def words(error: Exception) -> str:
    """What an exception of the SDK says, in one line of at most 400 characters."""
    text = str(getattr(error, "details", None) or getattr(error, "message", None) or error)
    return " ".join(text.partition(": HTTPConnectionPool")[0].partition(": HTTPSConnectionPool")[0].split()).rstrip(
        "."
    )[:400]
