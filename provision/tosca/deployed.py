"""A platform whose machine the PaaS orchestrator has made: the cloud `paas:URL` behind the contract of all clouds.

The orchestrator has applied the roles. What is left for this computer is what an existing host needs: a host key that
its user has seen, and a connection.
"""

from __future__ import annotations

import getpass
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from provision import __version__
from provision.clouds.base import Cloud, MachineState, Offer, Platform, Step
from provision.clouds.existing import ExistingHost
from provision.configure import MARKER
from provision.errors import ProvisionError, UsageError
from provision.plan import Plan, Progress, Stage
from provision.record import Access, Home, Record, Resource, new_uid
from provision.remote import Remote, make_key
from provision.tosca.orchestrator import Deployment, Orchestrator, Order, checked_url
from provision.tosca.submission import USERS, Submission

PREFIX = "paas:"
_STEP = "deployment"
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class DeployedHost(Cloud):
    """The orchestrator at `URL` of `paas:URL`; how it is asked for a platform stands in the values of its record."""

    kind = "existing"

    def __init__(self, cloud: str, home: Home) -> None:
        self.url = checked_url(cloud.removeprefix(PREFIX))
        self.home = home
        self.note: Callable[[str], None] = lambda _: None

    def client(self, platform: Platform) -> Orchestrator:
        """The orchestrator, asked by the account that submitted the platform."""
        return Orchestrator(self.url, platform.record.values.get("account", ""))

    def check(self, spec: object, *, baked: str = "") -> Offer:
        """Refuse: a deployment needs a template."""
        del spec, baked
        raise UsageError("The orchestrator makes no machine of options.", "Use `provision orchestrator submit`.")

    def steps(self, platform: Platform, offer: Offer) -> list[Step]:
        """See the contract: the deployment, then the host key as of a host that was there before."""
        del offer
        there: Deployment | None = None

        def find() -> Resource | None:
            nonlocal there
            with self.client(platform) as client:
                there = _found(client, platform)
                if there and there.failed:
                    raise client.failure(there)
            return _resource(there) if there and not there.in_progress else None

        def make() -> Resource:
            with self.client(platform) as client:
                made = there or client.submit(order(platform), platform.uid)
                platform.record.note(_STEP, "intended", _resource(made))
                platform.folder.save(platform.record)
                return _resource(ended(client, made.uuid, self.note))

        def find_key() -> Resource | None:
            return self._host(platform).steps(platform, Offer())[0].find()

        def make_key_known() -> Resource:
            host = self._host(platform)
            try:
                return host.steps(platform, Offer())[0].make()
            except ProvisionError as error:
                key = f"-i {platform.folder.key} " if fills_users(platform.record) else ""
                raise ProvisionError(
                    f"The deployment is complete. {error.message}",
                    f"Connect once by hand and compare the fingerprint: `ssh {key}{host.user}@{host.host}`; "
                    "then run the same command again.",
                ) from None

        return [
            Step(_STEP, f"deployment by {self.url}", 900, find, make),
            Step("host", "known host key of its machine", 1, find_key, make_key_known),
        ]

    def access(self, platform: Platform) -> Access:
        """See the contract: the address that the deployment tells."""
        access = self._host(platform).access(platform)
        return access.model_copy(update={"identities": ()}) if fills_users(platform.record) else access

    def _host(self, platform: Platform) -> ExistingHost:
        with self.client(platform) as client:
            found = _found(client, platform)
        if found is None:
            raise ProvisionError(f"The deployment of {platform.name} is gone.", f"`provision delete {platform.name}`.")
        return ExistingHost(f"ssh:{platform.record.values['user']}@{address_of(found)}", self.home)

    def discover(self, platform: Platform) -> list[Resource]:
        """See the contract."""
        with self.client(platform) as client:
            found = _found(client, platform)
        return [_resource(found)] if found else []

    def remove(self, platform: Platform, resource: Resource) -> None:
        """See the contract."""
        if resource.kind == _STEP:
            with self.client(platform) as client:
                remove(client, resource.id, self.note)

    def state(self, platform: Platform) -> MachineState:
        """See the contract; once it is deployed, the machine itself is asked, as the orchestrator does not look."""
        with self.client(platform) as client:
            found = _found(client, platform)
        if found is None:
            return "missing"
        if found.status == "CREATE_FAILED":
            return "error"
        if found.status.endswith("_IN_PROGRESS"):
            return "starting"
        if not platform.folder.ssh_config.exists():
            return "running"
        with Remote(platform.folder) as remote:
            return "running" if remote.answers() else "stopped"

    def start(self, platform: Platform) -> None:
        """Refuse: the orchestrator's dashboard does it."""
        raise UsageError(f"The machine of {platform.name} is the orchestrator's; start it in its dashboard.")

    def stop(self, platform: Platform) -> None:
        """Refuse: the orchestrator's dashboard does it."""
        raise UsageError(f"The machine of {platform.name} is the orchestrator's; stop it in its dashboard.")


def plan(submission: Submission, url: str, account: str, group: str, user: str, jump: str | None, minutes: int,
         home: Home) -> Plan:  # fmt: skip
    """Plan the submission of a platform, or the rest of one that was interrupted. Nothing is written.

    Args:
        submission: what is submitted; its name is the platform's.
        url, account: of the orchestrator, and of oidc-agent.
        group: of users, "" for none.
        user: the account on the machine; "" for this user's own name.
        jump: jump host (`USER@HOST[:PORT]`) for machines in private networks.
        minutes: how long the orchestrator may try, 0 for as long as it does by itself.
        home: where records are.

    Raises UsageError when the name is taken by another platform.
    """
    with Orchestrator(url, account):
        cloud = DeployedHost(f"{PREFIX}{checked_url(url)}", home)
    spec = submission.spec(f"{PREFIX}{cloud.url}", jump)
    values = {"account": account, "group": group, "minutes": str(minutes), "user": _user(submission, user)}
    values |= written(submission)
    folder = home.folder(spec.name)
    if folder.record_file.exists():
        record = folder.load()
        if record.spec != spec or record.values != values or record.state == "deleting":
            raise UsageError(
                f"The name {spec.name} is taken by another platform, or one that was submitted otherwise.",
                f"Choose another --name; `provision orchestrator update {spec.name}` changes it, or `delete` ends it.",
            )
    else:
        record = Record(
            name=spec.name,
            uid=new_uid(),
            owner=f"{getpass.getuser()}@{socket.gethostname()}",
            toolkit=__version__,
            spec=spec,
            values=values,
        )
    resumed = folder.record_file.exists()
    return Plan(cloud, Platform(record, folder), home.cache, Offer(values=values), bare=True, resumed=resumed)


def execute(planned: Plan, progress: Progress) -> Record:
    """Take the steps of `plan`; the platform is ready when its machine says that the roles were applied."""
    folder = planned.platform.folder
    record = planned.execute(_Watched(progress, planned.cloud))
    with Remote(folder) as remote:
        if remote.run(["cat", MARKER], check=False).strip():
            record.state = "ready"
            folder.save(record)
    return record


class _Watched:
    """Progress whose present stage the cloud can tell what the orchestrator does."""

    def __init__(self, progress: Progress, cloud: Cloud) -> None:
        self._progress = progress
        self._cloud = cloud

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """A step."""
        with self._progress.stage(title) as stage:
            if isinstance(self._cloud, DeployedHost):
                self._cloud.note = stage.note
            yield stage

    def skipped(self, title: str) -> None:
        """A step that was done already."""
        self._progress.skipped(title)


def written(submission: Submission) -> dict[str, str]:
    """A submission as the values of a record have it."""
    return {"template": json.dumps(submission.document), "inputs": json.dumps(submission.values)}


def recorded(record: Record) -> Submission:
    """The submission of which a record tells."""
    return Submission(json.loads(record.values["template"]), json.loads(record.values["inputs"]))


def deployment_of(record: Record) -> str:
    """The id of a platform's deployment, "" where it is not known or the platform is of another kind."""
    entry = record.entry(_STEP) if record.spec.cloud.startswith(PREFIX) else None
    return entry.resource.id if entry and entry.resource else ""


def order(platform: Platform) -> Order:
    """What is sent for a platform, with the mark of its uid and its own key for the account on the machine."""
    record, submission = platform.record, recorded(platform.record)
    parameters = dict(submission.values)
    if fills_users(record):
        public = platform.public_key or make_key(platform.folder.key, f"{record.owner} {record.name}")
        parameters[USERS] = account_of(record.values["user"], public)
    return Order(submission.template(record.uid), parameters, record.values["group"], int(record.values["minutes"]))


def account_of(user: str, public_key: str) -> list[dict[str, Any]]:
    """The value of the input with the accounts on the machine."""
    return [{"os_user_name": user, "os_user_add_to_sudoers": True, "os_user_ssh_public_key": public_key}]


def update(cloud: DeployedHost, platform: Platform, wanted: Submission, progress: Progress) -> Record:
    """Have the orchestrator change a platform; the record tells of it once that has succeeded.

    May be called again after a kill at any moment. Raises ProvisionError with the cause where it fails.
    """
    record, folder = platform.record, platform.folder
    spec = wanted.spec(record.spec.cloud, record.spec.jump)
    new = record.model_copy(update={"spec": spec, "values": {**record.values, **written(wanted)}}, deep=True)
    uuid = deployment_of(record)
    with cloud.client(platform) as client, progress.stage(f"updating the deployment {uuid}") as stage:
        client.wait(uuid, stage.note)
        client.update(uuid, order(replace(platform, record=new)))
        ended(client, uuid, stage.note)
    folder.known_hosts.unlink(missing_ok=True)  # it may be another machine, whose key the user has yet to see
    folder.save(new)
    return execute(Plan(cloud, Platform(new, folder), cloud.home.cache, Offer(values=new.values), True, True), progress)


def remove(client: Orchestrator, uuid: str, note: Callable[[str], None]) -> None:
    """Delete a deployment and return when it is gone; raises ProvisionError with the cause where that fails."""
    client.delete(uuid)
    if found := client.wait(uuid, note):
        raise client.failure(found)


def ended(client: Orchestrator, uuid: str, note: Callable[[str], None]) -> Deployment:
    """The deployment when the orchestrator's work on it has ended well; raises ProvisionError with the cause else."""
    found = client.wait(uuid, note)
    if found is None:
        raise ProvisionError(f"The deployment {uuid} was deleted by somebody else.")
    if found.failed:
        raise client.failure(found)
    return found


def address_of(found: Deployment) -> str:
    """The machine's address in a deployment's outputs, in brackets where it is IPv6.

    Raises ProvisionError where there is none.
    """
    told = found.outputs.get("node_ip")
    told = told[0] if isinstance(told, list) and told else told
    try:
        address = ipaddress.ip_address(str(told))
    except ValueError:
        raise ProvisionError(
            f"The deployment {found.uuid} ({found.status}) tells no address of its machine.",
            f"`provision orchestrator show {found.uuid}` shows its outputs.",
        ) from None
    return f"[{address}]" if address.version == 6 else str(address)


def _found(client: Orchestrator, platform: Platform) -> Deployment | None:
    """The platform's deployment: by its id, or by its mark where that is not known or has nothing any more."""
    record = platform.record
    if record.entry(_STEP) is None:
        return None
    uuid = deployment_of(record)
    return (client.present(uuid) if uuid else None) or client.marked(record.uid, record.values.get("group", ""))


def _resource(found: Deployment) -> Resource:
    return Resource(kind=_STEP, id=found.uuid)


def fills_users(record: Record) -> bool:
    """Whether the account on the machine has the platform's own key."""
    inputs = recorded(record).inputs
    return USERS in inputs and not inputs[USERS]


def _user(submission: Submission, user: str) -> str:
    """The account on the machine: the one that somebody has chosen, or the first that the values name."""
    given = submission.inputs.get(USERS) or []
    user = user or str(given[0]["os_user_name"] if given else getpass.getuser())
    if not _USER.fullmatch(user):
        raise UsageError(f"{user!r} cannot be an account on the machine.", "Name another one with --user.")
    return user
