"""Tells how long each certificate, revocation list, proxy and token of the machine is still valid, as JSON.

python3 -I - LIMITS    a JSON object: `days` for certificates, `hours` for what is renewed all the time
"""

import base64
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

DAY, HOUR = 86400, 3600
CERTIFICATES = (
    ("certificate of the web proxy", "etc/web-proxy/certificate.pem"),
    ("internal CA", "etc/web-proxy/internal/*/ca.pem"),
    ("certificate of the grid", "etc/grid-security/hostcert.pem"),
    ("CA of the issuer", "etc/mlaas4hep/issuer-ca.pem"),
    ("certificate of the cache", "var/lib/xcache/usercert.pem"),
)
PROXY, TOKEN = "var/lib/xcache/x509up", "var/lib/xcache/token"
CAS = "etc/grid-security/certificates"


def end_of(kind, path):
    """When a file in PEM (kind `x509` or `crl`) ends, in seconds since 1970; ValueError when it cannot be read."""
    option = "-enddate" if kind == "x509" else "-nextupdate"
    done = subprocess.run(
        ["openssl", kind, "-noout", option, "-in", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    text = done.stdout.strip().partition("=")[2]
    return datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc).timestamp()


def end_of_token(path):
    """When a JSON Web Token ends, in seconds since 1970; ValueError when it is none."""
    payload = path.read_text().strip().split(".")[1:2] or [""]
    claims = json.loads(base64.urlsafe_b64decode(payload[0] + "=" * (-len(payload[0]) % 4)) or "{}")
    return float(claims["exp"])


def finding(check, path, end, at, least, remedy):
    """One finding; `end` is a function that tells when it ends."""
    try:
        left = end() - at
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        return {"check": check, "good": False, "words": f"{path} cannot be read", "remedy": "See what is in the file."}
    amount = f"{left / DAY:.0f} days" if abs(left) >= 3 * DAY else f"{left / HOUR:.1f} hours"
    return {
        "check": check,
        "good": left >= least,
        "words": f"{amount} left",
        "remedy": "" if left >= least else remedy,
        "left": left,
    }


def group(check, kind, paths, at, most, remedy):
    """One finding for many files, of which so many may have ended."""
    ended, unread = [], []
    for path in paths:
        try:
            if end_of(kind, path) < at:
                ended.append(path.name)
        except (ValueError, subprocess.SubprocessError):
            unread.append(path.name)
    words = f"{len(paths)}, of which {len(ended)} have ended"
    words += f" and {len(unread)} cannot be read" if unread else ""
    few = ", ".join((ended + unread)[:5])
    good = len(ended) <= most and not unread
    return {
        "check": check,
        "good": good,
        "words": words + (f": {few}" if few else ""),
        "remedy": "" if good else remedy,
    }


def look(limits, at, root=Path("/")):
    """All findings, at a time in seconds since 1970."""
    days, hours = limits["days"] * DAY, limits["hours"] * HOUR
    found = []
    for check, pattern in CERTIFICATES:
        for path in sorted(root.glob(pattern)):
            end = lambda path=path: end_of("x509", path)  # noqa: E731
            found.append(finding(check, path, end, at, days, "Get a new one; docs/administration.md tells how."))
    proxy, token = root / PROXY, root / TOKEN
    again = "`journalctl --unit xcache-credential.service` tells why no newer one is there."
    if proxy.exists():
        found.append(finding("proxy of the cache", proxy, lambda: end_of("x509", proxy), at, hours, again))
    if token.exists():
        found.append(finding("token of the cache", token, lambda: end_of_token(token), at, hours, again))
    cas, lists = sorted((root / CAS).glob("*.pem")), sorted((root / CAS).glob("*.r0"))
    if cas:
        # what a CA has signed ends with it, so that it harms nobody where it still lies
        newer = "The packages igtf-policy-* of a newer release have others."
        found.append(group("CAs of the grid", "x509", cas, at, len(cas) - 1, newer))
    if lists:
        again = "`fetch-crl --verbose` tells which CA does not answer."
        found.append(group("revocation lists", "crl", lists, at, 0, again))
    return found


if __name__ == "__main__":
    print(json.dumps(look(json.loads(sys.argv[1]), time.time())))
