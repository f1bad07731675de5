"""Runs the real Infrastructure Manager with its own Python, and deploys templates to its Dummy connector.

    python deploy.py FOLDER OUTCOME TEMPLATE...

FOLDER is served as http://127.0.0.1:8000, as the portfolio's repositories would be, and the REST API is used as the
orchestrator uses it. What came of each template goes to the file OUTCOME. It has to be run without any network but
loopback: after a deployment the manager tries to reach the machine that Dummy has made up.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FILES = ("127.0.0.1", 8000)
API = ("127.0.0.1", 8800)
AUTHORIZATION = r"type = InfrastructureManager; username = user; password = password\nid = dummy; type = Dummy"
SECONDS = 300


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path, work: Path) -> None:
    files = http.server.ThreadingHTTPServer(FILES, functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    from IM.config import Config

    Config.REST_ADDRESS, Config.REST_PORT = API
    Config.DATA_DB = f"sqlite://{work}/manager.db"
    Config.LOG_FILE = f"{work}/manager.log"
    from IM import im_service

    im_service.config_logging()
    threading.Thread(target=im_service.launch_daemon, daemon=True).start()


def ask(method: str, path: str, body: str | None = None, accept: str = "application/json") -> tuple[int, str]:
    headers = {"Authorization": AUTHORIZATION, "Content-Type": "text/yaml", "Accept": accept}
    url = path if path.startswith("http") else f"http://{API[0]}:{API[1]}{path}"
    request = urllib.request.Request(url, body.encode() if body else None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def await_api() -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            assert ask("GET", "/version")[0] == 200
            return
        except OSError:
            assert time.monotonic() < deadline, "the Infrastructure Manager did not start"
            time.sleep(0.05)


def deploy(template: str) -> dict[str, Any]:
    """Estimate, create, look at and destroy one infrastructure."""
    status, estimate = ask("POST", "/infrastructures?dry_run=true", template)
    if status != 200:
        return {"error": estimate}
    status, address = ask("POST", "/infrastructures", template, "text/*")
    if status != 200:
        return {"error": address}
    try:
        found = {name: ask("GET", f"{address}/{name}") for name in ("state", "outputs")}
        outcome = {name: json.loads(text)[name] for name, (_, text) in found.items()}
        return {
            **outcome,
            "estimate": json.loads(estimate),
            "radl": ask("GET", f"{address}/radl", None, "text/plain")[1],
        }
    finally:
        assert ask("DELETE", f"{address}?force=true")[0] == 200


def main() -> None:
    folder, outcome, *templates = (Path(word) for word in sys.argv[1:])
    os.chdir(outcome.parent)
    serve(folder, outcome.parent)
    await_api()
    outcome.write_text(json.dumps({path.name: deploy(path.read_text()) for path in templates}))
    sys.stdout.flush()
    os._exit(0)  # its threads would wait for the machine


main()
