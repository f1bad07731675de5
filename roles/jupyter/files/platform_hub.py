"""JupyterHub of a shared platform, as its configuration puts it together. Written by the role jupyter.

Who somebody is, and whether they may have notebooks, is the word of the platform's service: its session, which the
browser has for the whole name, and its policy, which has to give the role `submit`. There is no further sign-in and no
further client at the issuer.

What a user's server answers is that user's own doing. So nginx asks the `Gate` of each request for one: it tells the
server's address when it is the session's own, and nobody's browser ever gets the page of another user.
"""

import asyncio
import hashlib
import json
import re
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from jupyterhub.auth import Authenticator
from jupyterhub.handlers import BaseHandler
from jupyterhub.proxy import Proxy
from jupyterhub.utils import random_port
from systemdspawner import SystemdSpawner, systemd
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.web import HTTPError, RequestHandler

SERVICE = "http://127.0.0.1:8080"
SESSION = "__Host-mlaas4hep"
ROLE = "submit"
KEY = re.compile(r"u[0-9a-f]{16}")
OF_A_SERVER = re.compile(r"/jupyter/user/([^/?]+)(?:[/?]|$)")
HOMES = "platform-jupyter"
"""Below /var/lib, a folder for each user."""
SLICE = "platform-jupyter.slice"
ENVIRONMENTS = "/run/platform-jupyterhub"
FRESH = 5.0  # seconds for which the service's word about a session counts
MOST_SESSIONS = 10_000


class Sessions:
    """Whose the service's sessions are."""

    def __init__(self):
        self._known = {}

    async def owner(self, cookie):
        """What the service tells of a session's user; None without a session.

        Raises HTTPError when it does not answer.
        """
        name, now = hashlib.sha256(cookie.encode(errors="replace")).digest(), time.monotonic()
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", cookie):
            return None
        told, until = self._known.get(name, (None, 0.0))
        if now >= until:
            told = await self._ask(cookie)
            if len(self._known) >= MOST_SESSIONS:
                self._known.clear()
            self._known[name] = (told, now + FRESH)
        return told

    async def _ask(self, cookie):
        headers = {"Cookie": f"{SESSION}={cookie}", "Accept": "application/json"}
        try:
            answer = await AsyncHTTPClient().fetch(f"{SERVICE}/api/v1/me", headers=headers, request_timeout=20)
            told = json.loads(answer.body)
        except HTTPClientError as error:
            if error.code in (401, 403):
                return None
            raise HTTPError(503, "The platform's service does not answer. Try again in a minute.") from error
        except (OSError, ValueError) as error:
            raise HTTPError(503, "The platform's service does not answer. Try again in a minute.") from error
        return told if KEY.fullmatch(str(told.get("key"))) else None


class ServiceAuthenticator(Authenticator):
    """The service's session is the sign-in."""

    def __init__(self, **words):
        super().__init__(**words)
        self.sessions = Sessions()

    async def owner(self, handler):
        """The session's user; None without one. Raises HTTPError for whom the policy does not let have notebooks."""
        told = await self.sessions.owner(handler.get_cookie(SESSION, ""))
        if told is not None and ROLE not in told.get("roles", []):
            raise HTTPError(403, "You may not have notebooks here: the platform's policy does not let you submit jobs.")
        return told

    async def authenticate(self, handler, data):
        """The user's name here is the service's key of them."""
        told = await self.owner(handler)
        return told and told["key"]

    async def refresh_user(self, user, handler=None):
        """Whether the session is still that user's; a server's own requests have a token, and no session."""
        if handler is None or handler.get_token() is not None:
            return True
        told = await self.owner(handler)
        return told is not None and told["key"] == user.name

    def login_url(self, base_url):
        """Where the hub begins."""
        return f"{base_url.rstrip('/')}/session"

    def get_handlers(self, app):
        """Pages of its own."""
        return [("/session", SignIn), ("/gate", Gate), ("/gate/use", Use)]


# JupyterHub 6.1 asks whether it is true before it is set, when a session has ended
BaseHandler._token_authenticated = False


class SignIn(BaseHandler):
    """Takes the service's session, or sends to the service's sign-in and comes back."""

    async def get(self):
        """Sign in."""
        page = self.get_next_url()
        user = await self.login_user({})
        if user is not None:
            self.redirect(self.get_next_url(user))
        elif self.get_argument("again", ""):
            raise HTTPError(403, "The platform's service has not kept its sign-in. Begin at its first page.")
        else:
            here = f"{self.request.path}?{urlencode({'next': page, 'again': '1'})}"
            self.redirect(f"/login?{urlencode({'next': here})}")


class Gate(RequestHandler):
    """Tells nginx where a user's server is, when the session is that user's."""

    def check_xsrf_cookie(self):
        """It changes nothing."""

    async def get(self):
        """Status 200 with the address in X-Notebook, 401 without a session, 403 for anybody else's."""
        path = self.request.headers.get("X-Original-URI", "")
        named = OF_A_SERVER.match(path)
        told = await self.settings["authenticator"].owner(self)
        if told is None:
            raise HTTPError(401)
        if named is None or named[1] != told["key"]:
            raise HTTPError(403)
        self.set_header("X-Notebook", self.settings["proxy"].address(told["key"]))

    def write_error(self, status_code, **_):
        """nginx says it."""
        self.finish()


class Use(RequestHandler):
    """Tells the machine itself whether a kernel works; the web proxy hides this."""

    async def get(self):
        """{"busy": true or false}."""
        proxy, users = self.settings["proxy"], self.settings["users"]
        states = [busy(address, users[name].spawner) for name, address in proxy.running().items()]
        self.finish({"busy": any(await asyncio.gather(*states))})


async def busy(address, spawner):
    """Whether a user's server says that a kernel of its works.

    It is asked by the token that is its own anyway: what asks, and with what, is in the hands of its user.
    """
    client = AsyncHTTPClient(force_instance=True, max_body_size=2**20)
    try:
        answer = await client.fetch(
            # asking is no use of the server: else it would never end
            f"http://{address}/jupyter/user/{spawner.user.name}/api/kernels?no_track_activity=1",
            headers={"Authorization": f"token {spawner.api_token}"},
            request_timeout=10,
            follow_redirects=False,
        )
        return any(kernel["execution_state"] == "busy" for kernel in json.loads(answer.body))
    except (HTTPClientError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    finally:
        client.close()


def listener(port):
    """Id of the account that listens at a port of the loopback; None where nobody does."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1] == f"0100007F:{port:04X}" and words[3] == "0A":
            return int(words[7])
    return None


def account(user):
    """Id of the account of a user's server, while it runs: it has the user's folder; -1 without one."""
    try:
        return Path(f"/var/lib/private/{HOMES}/{user}").stat().st_uid
    except FileNotFoundError:
        return -1


class GateProxy(Proxy):
    """No proxy of its own: nginx is one, and learns the ways from the gate."""

    should_start = False

    def __init__(self, **words):
        super().__init__(**words)
        self._routes = {}

    def address(self, user):
        """Host and port of a user's server; those of the hub, which starts it, when it does not run."""
        return self._running(user) or urlsplit(self.hub.host).netloc

    def running(self):
        """Name -> host and port, of all servers that run."""
        users = {route["data"].get("user") for route in self._routes.values()} - {None}
        return {user: address for user in users if (address := self._running(user))}

    def _running(self, user):
        found = self._routes.get(f"/jupyter/user/{user}/")
        target = urlsplit(found["target"]) if found else None
        # of a server that has just ended, anybody could have taken the port
        return target.netloc if target and listener(target.port) == account(user) else ""

    async def add_route(self, routespec, target, data):
        """From now on, a server is there."""
        self._routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec):
        """From now on, it is not."""
        self._routes.pop(routespec, None)

    async def get_all_routes(self):
        """All that are there."""
        return dict(self._routes)


class UserServer(SystemdSpawner):
    """A server in a unit with limits, of an account that systemd makes for it and that can become nobody else."""

    def get_state(self):
        """What is known of it when the hub has been restarted: its token too."""
        return {**super().get_state(), "api_token": self.api_token}

    def load_state(self, state):
        """Know it again."""
        super().load_state(state)
        self.api_token = state.get("api_token", "")

    async def start(self):
        """Start it; returns host and port."""
        name = self.user.name
        # not by a token of the hub: that would count after the policy has turned against its user
        told = self.handler and await self.authenticator.owner(self.handler)
        if not told or told["key"] != name or not KEY.fullmatch(name):
            raise HTTPError(403, "A notebook server is started by its user, signed in to the platform's service.")
        if await systemd.service_running(self.unit_name):
            await systemd.stop_service(self.unit_name)
        if await systemd.service_failed(self.unit_name):
            await systemd.reset_service(self.unit_name)
        self.port = random_port()
        home = f"/var/lib/{HOMES}/{name}"
        properties = {
            "DynamicUser": "yes",
            "User": f"jupyter-{name}",
            "StateDirectory": f"{HOMES}/{name}",
            "StateDirectoryMode": "0700",
            "RuntimeDirectory": self.unit_name,
            "RuntimeDirectoryPreserve": "no",
            "UMask": "0077",
            "MemoryMax": str(self.mem_limit),
            "MemorySwapMax": "0",
            "CPUQuota": f"{int(self.cpu_limit * 100)}%",
            "TasksMax": "1000",
            "CapabilityBoundingSet": "",
            "NoNewPrivileges": "yes",
            "LockPersonality": "yes",
            "PrivateDevices": "yes",
            "ProtectClock": "yes",
            "ProtectControlGroups": "yes",
            "ProtectHome": "yes",
            "ProtectKernelLogs": "yes",
            "ProtectKernelModules": "yes",
            "ProtectKernelTunables": "yes",
            "ProtectProc": "invisible",
            "RestrictRealtime": "yes",
            "SystemCallArchitectures": "native",
            # a cloud tells there what the machine was made with
            "IPAddressDeny": "169.254.169.254 fe80::a9fe:a9fe fd00:ec2::254",
        }
        if not Path(f"/var/lib/private/{HOMES}/{name}/notebooks").exists():
            properties["ExecStartPre"] = f"-/usr/local/bin/mlaas4hep notebooks {home}/notebooks"
        # sockets of kernels lie there, and their paths may not be long
        runtime = f"/run/{self.unit_name}"
        environment = {**self.get_env(), "HOME": home, "SHELL": "/bin/bash", "JUPYTER_RUNTIME_DIR": runtime}
        # in a folder of the hub's: that of the unit is, from the second start on, a link that leads nowhere yet
        file = systemd.make_environment_file(ENVIRONMENTS, self.unit_name, environment)
        properties["EnvironmentFile"] = file
        status = await systemd.start_transient_service(
            self.unit_name,
            cmd=list(self.cmd),
            args=self.get_args(),
            working_dir=home,
            properties=properties,
            slice=SLICE,
        )
        if status != 0:
            raise HTTPError(500, f"The unit {self.unit_name} could not be started; the hub's journal tells why.")
        for _ in range(self.start_timeout):
            if await self.poll() is None:
                break
            await asyncio.sleep(1)
        return "127.0.0.1", self.port
