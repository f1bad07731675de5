"""The parts of a platform that the web proxy stands before: each answers with its own name and what it was sent."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    """JSON: `part`, `path`, `headers`, and `length` of the body. /events: a stream whose second event never comes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path.startswith("/events"):
            self.events()
            return
        length = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        facts = {"part": self.server.part, "path": self.path, "headers": dict(self.headers), "length": length}
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815  (http.server's names)

    def events(self) -> None:
        """Send one event, and say nothing more until the client is gone."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        self.connection.recv(1)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Answer)
server.part = sys.argv[1]
server.serve_forever()
