"""A real oidc-agent, with accounts that are made without anybody's hands."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.oidc.provider import OidcProvider

PROGRAMS = {"oidc-agent": "oidc-agent-cli"}
_SECONDS = 60


@dataclass
class Agent:
    """A running oidc-agent.

    Attributes:
        environment: what its clients need to find it.
        refresh_tokens: of each account.
    """

    environment: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes]
    refresh_tokens: dict[str, str] = field(default_factory=dict)

    def add(self, account: str, provider: OidcProvider, user: str) -> None:
        """Make an account of a user, and load it."""
        self.refresh_tokens[account] = refresh = str(provider.user_tokens(user)["refresh_token"])
        words = ["--manual", f"--iss={provider.issuer}", "--client-id=agent", "--client-secret=agents-secret"]
        words += [f"--cp={provider.ca_file}", "--scope=openid offline_access wlcg.groups", "--rt-env=RT"]
        words += ["--redirect-uri=http://localhost:4242", f"--pw-file={self.folder}/password", "--confirm-default"]
        words += ["--prompt=none", "--no-url-call", "--no-webserver", "--no-scheme"]
        self.run("oidc-gen", account, *words, RT=refresh)

    def load(self, account: str) -> None:
        """Load an account that it has on the disk."""
        self.run("oidc-add", account, f"--pw-file={self.folder}/password")

    def unload(self, account: str) -> None:
        """Take an account out of the agent; it stays on the disk."""
        self.run("oidc-add", "--remove", account)

    def token(self, account: str) -> str:
        """The access token that the agent has for an account."""
        return self.run("oidc-token", account).strip()

    def run(self, *words: str, **more: str) -> str:
        """Run a client of the agent and return what it printed."""
        done = subprocess.run(
            words,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def end(self) -> None:
        """End it, as a logout of its user does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def oidc_agent(folder: Path, *options: str) -> Iterator[Agent]:
    """An agent that keeps its accounts in `folder`."""
    program = shutil.which("oidc-agent")
    assert program
    folder.mkdir(mode=0o700, exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OIDC_AGENT_CONFIG": str(folder / "accounts")}
    (folder / "password").write_text("password of the test")
    socket = folder / "socket"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--console", "--quiet", *options, f"--socket-path={socket}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        agent = Agent(environment | {"OIDC_SOCK": str(socket)}, folder, process)
        try:
            deadline = time.monotonic() + _SECONDS
            while not socket.exists():
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.01)
            yield agent
        finally:
            agent.end()
