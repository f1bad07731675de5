"""An issuer that misbehaves as a test wishes: what a well-behaved provider never shows."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from joserfc.jwk import RSAKey

from tests.oidc.provider import OidcProvider, make_certificate

KEY = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
DISCOVERY = "/.well-known/openid-configuration"


@dataclass
class Issuer:
    """What the server answers: status, headers and body of each path; the bodies of `endless` ones go on for ever."""

    url: str
    ca_file: Path
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    endless: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)

    def publish(self, *keys: dict[str, Any], **metadata: Any) -> None:
        """A discovery document and these keys."""
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks", **metadata}
        self.answers = {DISCOVERY: as_json(document), "/jwks": as_json({"keys": list(keys)})}

    def token(self, key: RSAKey = KEY, **changes: Any) -> str:
        return OidcProvider(self.url, self.ca_file, key, self.ca_file.parent).token(**changes)


def as_json(data: object) -> tuple[int, dict[str, str], bytes]:
    """An answer that is JSON."""
    return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


@contextmanager
def misbehaving_issuer(folder: Path, scheme: str = "https") -> Iterator[Issuer]:
    """A server on loopback; it answers GET and POST alike."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make_certificate(certificate, key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            made.gate.wait(60)
            status, headers, body = made.answers.get(self.path, (404, {}, b""))
            with suppress(ConnectionError, ssl.SSLError):  # of who has read enough
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                while self.path in made.endless:
                    self.wfile.write(b" ")
                    time.sleep(0.01)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if scheme == "https":
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    made = Issuer(f"{scheme}://127.0.0.1:{server.server_port}", certificate)
    made.gate.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.gate.set()
        made.endless.clear()
        server.shutdown()
        thread.join()
        server.server_close()
