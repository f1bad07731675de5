"""Looks after platforms that are there: the verbs of `provision admin`, each a playbook of `playbooks/admin`.

A verb is told once, in VERBS: the command line with its help and the playbook's variables come from it.
What a playbook has to say it shows in a task named REPORT, as the `msg` of a debug task.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.record import Folder, Home, Record

REPORT = "Report"
"""Name of the task whose message is the platform's report: a mapping; `findings` in it are a list of checks."""

_AT_ONCE = 10
_KEPT_LOGS = 20


@dataclass(frozen=True)
class Option:
    """An option of a verb.

    Attributes:
        name: on the command line, `--name`.
        variable: the playbook's variable; it stays unset when the option is not given.
        help: for `--help`.
        kind: bool, int, str, Path (a file of this computer that has to be there), or list for several words.
        choices: the words that a str may be; any when empty.
    """

    name: str
    variable: str
    help: str
    kind: type = str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verb:
    """A verb of `provision admin`.

    Attributes:
        name: the verb; the playbook is `playbooks/admin/NAME.yml`.
        help: what it does, in one sentence.
        options: its own options.
        changes: whether it changes anything; then no other command is at work on the platform meanwhile.
        asks: what is asked before, because it cannot be undone; nothing is asked when empty.
        configured: whether the playbook gets the variables of `platform.yml` for each platform.
        predicts: whether it always runs in check mode, to tell what differs.
        unready: whether it is also for platforms that are made, but not configured.
    """

    name: str
    help: str
    options: tuple[Option, ...] = ()
    changes: bool = True
    asks: str = ""
    configured: bool = False
    predicts: bool = False
    unready: bool = False


_BACKUP = (
    Option(
        "repository",
        "backup_repository",
        "Folder of the machine, sftp:USER@HOST:/FOLDER or s3:https://HOST/BUCKET.  [as set up]",
    ),
    Option("key", "backup_key_file", "File with the key.  [backups/NAME.key of the toolkit's folder]", Path),
    Option("credentials", "backup_credentials_file", "File with NAME=VALUE lines for S3 and others.", Path),
    Option("sftp-key", "backup_sftp_key_file", "Private SSH key for SFTP.", Path),
    Option("sftp-known-hosts", "backup_sftp_known_hosts_file", "known_hosts with the SFTP server's key.", Path),
)
_KEEP = (
    Option("at", "backup_at", "When backups are made, in the words of systemd.time(7).  [daily at 2:30]"),
    Option("keep-daily", "backup_keep_daily", "Days of which the last backup is kept.  [7]", int),
    Option("keep-weekly", "backup_keep_weekly", "Weeks of which the last backup is kept.  [4]", int),
    Option("keep-monthly", "backup_keep_monthly", "Months of which the last backup is kept.  [12]", int),
)

VERBS: tuple[Verb, ...] = (
    Verb(
        "health",
        "Look at services, disk, GPU, certificates, queue, last backup and clock; change nothing.",
        changes=False,
    ),
    Verb(
        "drain",
        "Take no new jobs and start none that waits, also over restarts; what runs goes on.",
        (
            Option("reason", "drain_reason", "What users are told."),
            Option("hours", "drain_hours", "When it ends by itself.  [by `resume`]", int),
            Option("wait", "drain_wait", "Seconds to wait for the jobs that run; fails when some still do.  [0]", int),
        ),
    ),
    Verb("resume", "Take jobs again after `drain`, and start those that wait."),
    Verb(
        "update",
        "Update packages of the system and the framework; jobs are held meanwhile, and released.",
        (
            Option("packages", "update_packages", "Of the system.  [security]", choices=("security", "all", "none")),
            Option("framework", "update_framework", "Whether the framework is updated to this toolkit's.  [yes]", bool),
            Option("wheel", "mlaas4hep_wheel", "Wheel of the framework.  [what the platform was made with]", Path),
            Option("reboot", "update_reboot", "Whether the machine may be restarted when that is needed.  [no]", bool),
            Option("wait", "update_wait", "Seconds to wait for the jobs that run.  [3600]", int),
            Option("interrupt", "update_interrupt", "Do not wait: jobs that run begin anew.", bool),
            Option("rollback", "update_rollback", "Only go back to the framework that was before.", bool),
        ),
        configured=True,
    ),
    Verb(
        "backup",
        "Set up encrypted backups by restic, make one now, and verify it by restoring some of it.",
        (*_BACKUP, *_KEEP),
    ),
    Verb(
        "restore",
        "Put a backup back, also onto a new machine: workspaces, jobs, models, settings, tokens.",
        (
            *_BACKUP,
            Option("of", "backup_of", "Name of the platform whose backup it is.  [its own]"),
            Option("snapshot", "restore_snapshot", "Which backup.  [the newest]"),
            Option("dry-run", "restore_dry_run", "Only tell what would be replaced.", bool),
        ),
        asks="What users have on it now is replaced by the backup.",
    ),
    Verb(
        "users",
        "Add, change, lock and remove people's accounts; replace the service's policy.",
        (
            Option("add", "admin_add", "Account to add, to change or to unlock."),
            Option("key", "admin_keys", "File of its public SSH keys; without one it keeps those that it has.", Path),
            Option("sudo", "admin_sudo", "Whether it may do everything as root.", bool),
            Option("lock", "users_locked", "Account that is locked.", list),
            Option("remove", "users_removed", "Account that goes.", list),
            Option("home", "users_home", "What becomes of its home.", choices=("keep", "archive", "remove")),
            Option("accounts", "admin_accounts", "YAML file with a list of accounts (name, ssh_keys, sudo).", Path),
            Option("policy", "users_policy", "File of the service's new policy, with roles and quotas.", Path),
        ),
    ),
    Verb(
        "hardening",
        "Harden SSH, close the firewall, switch on updates and records; then go through a checklist.",
        (
            Option("port", "hardening_ports", "Further TCP port that everybody may connect to.", list),
            Option("source", "hardening_sources", "Network from which SSH is reached.  [all]", list),
        ),
    ),
    Verb(
        "certificates",
        "Renew what is due of certificates, CAs, revocation lists, proxies and tokens; tell how long all are valid.",
        (
            Option("certificate", "web_proxy_certificate", "For an own certificate, the file of the new one.", Path),
            Option("key", "web_proxy_key", "For an own certificate, the file of its key.", Path),
            Option("days", "certificates_days", "Days for which a certificate has to be valid.  [20]", int),
        ),
    ),
    Verb(
        "clean",
        "Remove what is old: stores, logs, downloads, and if told so jobs and workspaces. --check tells what would go.",
        (
            Option("jobs-days", "clean_jobs_days", "Days after their end that jobs go; 0: never.  [0]", int),
            Option("workspaces-days", "clean_workspaces_days", "Days unchanged that workspaces go.  [0]", int),
            Option("stores-days", "clean_stores_days", "Days unread that packed stores go.  [30]", int),
            Option("logs-days", "clean_logs_days", "Days that closed logs are kept.  [60]", int),
        ),
        asks="What is old is removed and does not come back.",
    ),
    Verb(
        "rotate",
        "Give a personal platform a new token, and end the sessions of browsers; jobs go on.",
        asks="The service is restarted; who uses the present token gets a new one by `provision`.",
    ),
    Verb(
        "audit",
        "Tell who logged in and what they did as root, and what differs from what was declared; change nothing.",
        (Option("days", "audit_days", "Days to look back.  [30]", int),),
        changes=False,
        configured=True,
        predicts=True,
    ),
    Verb(
        "precheck",
        "Tell whether a machine is fit for a platform; change nothing but the package lists.",
        changes=False,
        unready=True,
    ),
    Verb(
        "gpu",
        "Look after the driver of NVIDIA GPUs: whether it fits the kernel and the framework, and computes.",
        (
            Option("upgrade", "gpu_upgrade", "Install the newest driver of the machine's release.", bool),
            Option("reboot", "gpu_reboot", "Restart the machine when the new driver needs it.", bool),
        ),
    ),
)


@dataclass
class Outcome:
    """What became of one platform.

    Attributes:
        state: `ok`, `failed`, `unreachable`, or `not tried` when too many others had failed.
        changed: names of the tasks that changed something (or would, in check mode).
        failure: task and message of what failed.
        report: what the playbook's task REPORT has shown.
        log: the full output.
    """

    name: str
    state: str = "ok"
    changed: list[str] = field(default_factory=list)
    failure: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0
    log: str = ""

    @property
    def good(self) -> bool:
        """Whether it was done, and no finding of the report is bad."""
        return self.state == "ok" and not self.bad_findings

    @property
    def bad_findings(self) -> list[dict[str, Any]]:
        """The findings of the report that are not good."""
        return [finding for finding in self.report.get("findings", []) if not finding.get("good", True)]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def chosen(home: Home, names: Sequence[str], limit: str = "", unready: bool = False) -> list[Folder]:
    """The folders of the platforms that are meant, by name.

    Args:
        home: the toolkit's folder.
        names: their names; all that are ready when empty.
        limit: comma-separated patterns (`web*,!web7`); only what matches one of them, and no `!` pattern, is left.
        unready: whether those count as ready that can be reached.

    Raises UsageError for a name that there is not, a platform that is not ready, and when none is left.
    """
    known = {folder.name: folder for folder in home.folders()}
    for name in names:
        if name not in known:
            raise UsageError(f"There is no platform {name!r}.", "`provision list` shows what there is.")
    records = {name: folder.load() for name, folder in known.items()}
    ready = {n: known[n] for n, record in records.items() if record.state == "ready" or (unready and record.access)}
    if missing := [name for name in names if name not in ready]:
        raise UsageError(
            f"The platform {missing[0]} is not ready.", f"`provision create {missing[0]}` without --bare makes it so."
        )
    words = [word.strip() for word in limit.split(",") if word.strip()]
    unwanted = [word[1:] for word in words if word.startswith("!")]
    wanted = [word for word in words if not word.startswith("!")] or ["*"]
    left = [
        ready[name]
        for name in sorted(set(names) or ready)
        if any(fnmatchcase(name, word) for word in wanted) and not any(fnmatchcase(name, word) for word in unwanted)
    ]
    if not left:
        raise UsageError("No platform is meant.", "Name some that are ready, or --all; --limit may leave out too many.")
    return left


def variables_of(verb: Verb, given: dict[str, Any]) -> dict[str, Any]:
    """The playbook's variables of the options that were given.

    Raises UsageError for a word that is none of the choices, and a file that is not there.
    """
    variables: dict[str, Any] = {}
    for option in verb.options:
        value = given.get(option.variable)
        if value is None or value in ([], ()):
            continue
        if option.choices and value not in option.choices:
            raise UsageError(f"--{option.name} is {value!r}.", f"Give one of {', '.join(option.choices)}.")
        if option.kind is Path:
            path = Path(value).expanduser().absolute()
            if not path.is_file():
                raise UsageError(f"The file {path} (--{option.name}) does not exist.")
            value = str(path)
        variables[option.variable] = list(value) if option.kind is list else value
    return variables


def inventory(home: Home, folders: Sequence[Folder], configured: bool = False) -> dict[str, Any]:
    """The inventory of these platforms, as Ansible wants it of a script's `--list`.

    All are in the group `platform`, and each in those of its cloud (`cloud_local`), service (`service_shared`),
    executor (`executor_slurm`) and, with GPUs, in `gpu`. The workers of clusters are in the group `workers`; each
    machine is told of its platform's (`platform_machine`, `platform_workers`). SSH uses the platform's own key and
    each machine's host key.

    Args:
        home: the toolkit's folder.
        folders: which platforms.
        configured: whether to add the variables of `platform.yml`; builds the wheel of a checkout that has changed.
    """
    groups: dict[str, Any] = {"platform": {"hosts": []}, "workers": {"hosts": []}, "_meta": {"hostvars": {}}}
    for folder in folders:
        record = folder.load()
        host = _host(home, folder, record, configured)
        groups["_meta"]["hostvars"] |= dict.fromkeys([folder.name, *host["platform_workers"]], host)
        groups["workers"]["hosts"] += host["platform_workers"]
        for group in ("platform", *_groups(record)):
            groups.setdefault(group, {"hosts": []})["hosts"].append(folder.name)
    return groups


def _host(home: Home, folder: Folder, record: Record, configured: bool) -> dict[str, Any]:
    from provision.configure import connection_variables, platform_variables
    from provision.framework import find_framework

    more = platform_variables(record, find_framework(record.spec.mlaas4hep, home.cache)) if configured else {}
    return {
        **connection_variables(folder),
        "platform_name": record.name,
        "platform_machine": folder.name,
        "platform_workers": _workers(record),
        "platform_uid": record.uid,
        "backup_key_file": str(home.path / "backups" / f"{record.name}.key"),
        **more,
    }


def _workers(record: Record) -> list[str]:
    """The names of the platform's workers."""
    from provision.record import worker_name

    return [worker_name(record.name, number) for number in range(1, record.spec.workers + 1)]


def _groups(record: Record) -> Iterator[str]:
    spec = record.spec
    word = "".join(character if character.isalnum() else "_" for character in spec.cloud.partition(":")[0])
    yield f"cloud_{word}"
    yield f"service_{spec.service}"
    yield f"executor_{'slurm' if spec.slurm else 'local'}"
    if spec.gpu:
        yield "gpu"


def run_verb(
    home: Home,
    verb: Verb,
    folders: Sequence[Folder],
    variables: dict[str, Any],
    progress: Callable[[str], None],
    ended: Callable[[Outcome], None],
    *,
    check: bool = False,
    serial: int = 0,
    max_failures: int | None = None,
) -> list[Outcome]:
    """Run a verb's playbook on platforms, in batches of `serial` (0: all together).

    Args:
        home: the toolkit's folder.
        verb: which.
        folders: the platforms.
        variables: the playbook's, see `variables_of`.
        progress: gets the name of each task as it starts.
        ended: gets each platform's outcome as its batch ends.
        check: predict what would be changed (Ansible's check mode, with differences in the log); change nothing.
        serial: platforms in a batch.
        max_failures: no further batch begins when more platforms than this have failed; None: all are tried.
    """
    size = serial or len(folders)
    outcomes: list[Outcome] = []
    for start in range(0, len(folders), size):
        failed = sum(not outcome.good for outcome in outcomes)
        batch = folders[start : start + size]
        if max_failures is not None and failed > max_failures:
            done = [Outcome(folder.name, "not tried") for folder in batch]
        else:
            done = _run_batch(home, verb, batch, variables, progress, check)
        for outcome in done:
            ended(outcome)
        outcomes += done
    return outcomes


def _run_batch(
    home: Home,
    verb: Verb,
    folders: Sequence[Folder],
    variables: dict[str, Any],
    progress: Callable[[str], None],
    check: bool,
) -> list[Outcome]:
    """One run of ansible-playbook; what it did to each platform."""
    import ansible_runner

    from provision.configure import ansible_environment
    from provision.share import share

    base, began = share(), time.monotonic()
    listing = inventory(home, folders, verb.configured)
    known = listing.pop("_meta")["hostvars"]
    groups = {group: {"hosts": {name: known[name] for name in found["hosts"]}} for group, found in listing.items()}
    machines = {folder.name: [folder.name, *known[folder.name]["platform_workers"]] for folder in folders}
    outcomes = {folder.name: Outcome(folder.name, log=str(_new_log(folder, verb))) for folder in folders}
    watch = _Watch(outcomes, machines, progress)
    with tempfile.TemporaryDirectory(prefix="provision-") as private:
        run = ansible_runner.run(
            private_data_dir=private,
            playbook=str(base / "playbooks" / "admin" / f"{verb.name}.yml"),
            inventory=groups,
            extravars=variables,
            envvars=ansible_environment(base, private),
            cmdline="--check --diff" if check else None,
            forks=_AT_ONCE,
            event_handler=watch,
            quiet=True,
        )
    return watch.outcomes(int(run.rc), time.monotonic() - began)


def _new_log(folder: Folder, verb: Verb) -> Path:
    logs = folder.logs / "admin"
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in sorted(logs.glob("*.log"), key=lambda log: log.stat().st_mtime)[: -_KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    log = logs / f"{verb.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log.touch(mode=0o600)
    return log


class _Watch:
    """Turns the events of one run into the outcomes of its platforms."""

    def __init__(
        self, outcomes: dict[str, Outcome], machines: dict[str, list[str]], progress: Callable[[str], None]
    ) -> None:
        self._outcomes = outcomes
        self._machines = machines
        self._failures: dict[str, dict[str, str]] = {name: {} for name in outcomes}
        self._of = {machine: outcomes[name] for name, those in machines.items() for machine in those}
        self._progress = progress
        self._ended = False
        self._said = ""

    def __call__(self, event: dict[str, Any]) -> bool:
        """Take one event of ansible-runner's."""
        from provision.configure import failure_message, task_name

        data = event.get("event_data", {})
        name = str(data.get("host", ""))
        host = self._of.get(name)
        where = f"{name}: " if host and name != host.name else ""
        self._write(event.get("stdout") or "", [host] if host else list(self._outcomes.values()))
        match event["event"]:
            case "playbook_on_task_start" | "playbook_on_handler_task_start":
                self._progress(task_name(data))
            case "runner_on_ok" if host:
                result = data.get("res", {})
                if str(data.get("task")).rpartition(" : ")[2] == REPORT and isinstance(result.get("msg"), dict):
                    host.report |= result["msg"]
                # what each machine of a cluster does, is told once
                known = task_name(data) in host.changed and len(self._machines[host.name]) > 1
                if result.get("changed") and not known:
                    host.changed.append(task_name(data))
            case "runner_on_failed" if host and not data.get("ignore_errors"):
                self._fail(host, name, f"{where}{task_name(data)}: {failure_message(data.get('res', {}))}")
            case "runner_on_unreachable" if host:
                self._fail(host, name, f"{where}the machine was not reached: {failure_message(data.get('res', {}))}")
            case "playbook_on_stats":
                self._count(data)
        return False

    def _fail(self, outcome: Outcome, machine: str, failure: str) -> None:
        """Tell the last failure of each machine: that of a worker may be why its platform's own machine stops."""
        failures = self._failures[outcome.name]
        failures[machine] = failure
        outcome.failure = "; ".join(failures.values())

    def _write(self, text: str, outcomes: Sequence[Outcome]) -> None:
        if not text:
            return
        self._said = text
        for outcome in outcomes:
            with Path(outcome.log).open("a", encoding="utf-8") as handle:
                handle.write(f"{text}\n")

    def _count(self, data: dict[str, Any]) -> None:
        self._ended = True
        for name, outcome in self._outcomes.items():
            if any(map(data.get("dark", {}).get, self._machines[name])):
                outcome.state = "unreachable"
            elif any(map(data.get("failures", {}).get, self._machines[name])):
                outcome.state = "failed"
            else:
                outcome.failure = ""  # what a rescue has made good

    def outcomes(self, status: int, seconds: float) -> list[Outcome]:
        """The outcomes, once ansible-playbook has ended with that exit status."""
        for outcome in self._outcomes.values():
            outcome.seconds = round(seconds, 1)
            if status and not self._ended:
                # it came to no task: a mistake in the playbook
                outcome.state = "failed"
                outcome.failure = outcome.failure or " ".join(self._said.split())[-500:] or f"exit status {status}"
        return list(self._outcomes.values())


def inventory_json(home: Home, host: str | None = None) -> str:
    """What an inventory script prints for `--list`, or for `--host HOST`."""
    listing = inventory(home, [folder for folder in home.folders() if folder.load().state == "ready"])
    hosts: dict[str, Any] = listing["_meta"]["hostvars"]
    return json.dumps(listing if host is None else hosts.get(host, {}), indent=1)
