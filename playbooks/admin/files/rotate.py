"""Gives a personal platform's service a new token, and shows that the former one counts no more.

    python3 -I - TOKEN_FILE

The service is restarted; its jobs go on. When it does not take the new token, the former one is there again. Prints
findings as JSON; tokens are neither printed nor arguments of a command.
"""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

UNIT = "mlaas4hep.service"
ASKED = (("service", "GET", "http://127.0.0.1:8080/api/v1/me"),
         ("inference", "POST", "http://127.0.0.1:8081/v2/repository/index"))  # fmt: skip
SECONDS = 120


def status(method, url, token):
    """What is answered to somebody with that token; 0 when nobody answers."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = b"{}" if method == "POST" else None
    try:
        request = urllib.request.Request(url, method=method, headers=headers, data=body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def write(path, token):
    """Put a token in the place of the last one, in one step, for the same account."""
    facts = path.stat()
    new = path.with_name(f".{path.name}-rotated")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchown(descriptor, facts.st_uid, facts.st_gid)
        stream.write(f"{token}\n")
        stream.flush()
        os.fsync(descriptor)
    new.replace(path)


def answers(token, wanted):
    """The statuses that are answered, when they are the wanted ones or the time is over."""
    end = time.monotonic() + SECONDS
    while True:
        found = {name: status(method, url, token) for name, method, url in ASKED}
        if set(found.values()) == {wanted} or time.monotonic() > end:
            return found
        time.sleep(1)


def main(path):
    """Rotate, look, and take it back when it is not good."""
    former, token = path.read_text().strip(), secrets.token_urlsafe(32)
    write(path, token)
    restarted = subprocess.run(["systemctl", "restart", UNIT], check=False).returncode == 0
    new = answers(token, 200) if restarted else {}
    if set(new.values()) != {200}:
        write(path, former)
        subprocess.run(["systemctl", "restart", UNIT], check=False)
        sys.exit(
            f"The service did not take a new token (it answered {new or 'nothing'}), so the former one counts again."
        )
    old = {name: status(method, url, former) for name, method, url in ASKED}
    good = set(old.values()) == {401}
    print(
        json.dumps(
            [
                {"check": "new token", "good": True, "words": "service and inference take it"},
                {
                    "check": "former token",
                    "good": good,
                    "words": "nobody takes it any more" if good else f"it is still answered: {old}",
                    "remedy": "" if good else "Restart the machine, and rotate again.",
                },
            ]
        )
    )


main(Path(sys.argv[1]))
