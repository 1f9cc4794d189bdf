"""A page on this machine that shows blinded pairs, one after the other, and takes answers.

It listens on 127.0.0.1 alone; its address holds a random token, without which there is nothing; it names no other host,
and says so to the browser (content security policy). Nothing that it sends tells a pair of one person from another.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer

import numpy as np
from PIL import Image

from midefense.studies.rating import Answers, Sheet
from midefense.types import Refused

HOST = "127.0.0.1"
SHOWN = 256  # pixels a side at least, so that small pictures are seen
LONGEST = 1000  # bytes of an answer
POLL_SECONDS = 0.2
IDLE_SECONDS = 5.0  # before a browser that opens a connection and sends nothing is let go
POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Pairs</title>
<style>body{{font:18px system-ui;text-align:center;margin:2em auto;max-width:44em}}
img{{width:16em;image-rendering:pixelated;margin:.5em;border:1px solid #888}}
button{{font:inherit;padding:.6em 1.4em;margin:.5em}}
</style><h1>Do both pictures show the same person or thing?</h1><p id="place"></p>
<p><img id="left" alt="left picture"><img id="right" alt="right picture"></p>
<p><button id="same">Same (S)</button><button id="different">Different (D)</button></p>
<script nonce="{nonce}">
const items = {items}; let at = 0, since = performance.now();
const by = id => document.getElementById(id);
function show() {{
  if (at >= items.length) {{
    document.body.textContent = "Thank you: all pairs are answered. This page may be closed.";
    return;
  }}
  by("place").textContent = `${{at + 1}} of ${{items.length}}`;
  for (const side of ["left", "right"]) by(side).src = `picture/${{items[at]}}/${{side}}`;
  since = performance.now();
}}
async function answer(said) {{
  if (at >= items.length) return;
  const told = {{item: items[at], answer: said, seconds: (performance.now() - since) / 1000}};
  try {{
    const taken = await fetch("answer", {{method: "POST", body: JSON.stringify(told)}});
    if (!taken.ok) {{ by("place").textContent = await taken.text(); return; }}
  }} catch (error) {{
    by("place").textContent = `Not stored (${{error.message}}): is midefense rate still at work? Then answer again.`;
    return;
  }}
  at += 1; show();
}}
for (const said of ["same", "different"]) by(said).onclick = () => answer(said);
document.onkeydown = key => {{ if (key.key === "s") answer("same"); if (key.key === "d") answer("different"); }};
show();
</script></html>"""


class RatingServer(TCPServer):
    """Serves a sheet to one rater. `address` is what to open; `left` counts the pairs without an answer.

    Args:
        port: to listen on; 0 takes a free one.
    """

    allow_reuse_address = True

    def __init__(self, sheet: Sheet, answers: Answers, rater: str, port: int = 0) -> None:
        self.sheet, self.answers, self.rater = sheet, answers, rater
        self.token = secrets.token_urlsafe(24)
        self.open_items = [item for item in range(len(sheet.pairs)) if item not in answers.of(rater)]
        super().__init__((HOST, port), _Handler)
        self.timeout = POLL_SECONDS

    @property
    def address(self) -> str:
        """Where the page is, with its token."""
        return f"http://{self.host}/{self.token}/"

    @property
    def host(self) -> str:
        """The name and port that it listens on."""
        return f"{HOST}:{self.server_address[1]}"

    @property
    def left(self) -> int:
        """How many pairs have no answer yet."""
        return len(self.open_items)

    def serve_all(self) -> None:
        """Serve until every pair is answered; the page then knows by itself."""
        while self.left:
            self.handle_request()

    def take(self, said: object) -> None:
        """Store an answer that a browser sent; `Refused` if it is none."""
        if not isinstance(said, dict) or type(said.get("item")) is not int:
            raise Refused("expected item, answer and seconds, got another")
        item, seconds = said["item"], said.get("seconds", 0.0)
        if item not in self.open_items or not isinstance(seconds, int | float) or not 0 <= seconds < 1e6:
            raise Refused(f"expected a pair without an answer, got {item}")
        self.answers.add(self.rater, item, str(said.get("answer")), float(seconds))
        self.open_items.remove(item)


class _Handler(BaseHTTPRequestHandler):
    """Who asks without the token, or by another name of this machine (a page elsewhere whose name was made to lead
    here), gets nothing."""

    server: RatingServer
    timeout = IDLE_SECONDS
    server_version = "midefense"
    sys_version = ""

    def do_GET(self) -> None:
        path = self._path()
        if path == "":
            nonce = secrets.token_urlsafe(12)
            page = PAGE.format(items=json.dumps(self.server.open_items), nonce=nonce)
            self._send(page.encode(), "text/html; charset=utf-8", policy=POLICY.format(nonce=nonce))
            return
        match (path or "").split("/"):
            case ["picture", item, "left" | "right" as side] if item.isdecimal() and self._is_item(int(item)):
                self._send(as_png(self.server.sheet.picture(int(item), side)), "image/png")
            case _:
                self._nothing()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self._path() != "answer" or not length.isdecimal() or int(length) > LONGEST:
            self._nothing()
            return
        try:
            self.server.take(json.loads(self.rfile.read(int(length))))
        except (json.JSONDecodeError, UnicodeDecodeError, Refused) as error:
            self._send(str(error).encode(), "text/plain; charset=utf-8", HTTPStatus.CONFLICT)
            return
        self._send(b"", "text/plain", HTTPStatus.OK)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the token stands in every line."""

    def _is_item(self, item: int) -> bool:
        return item < len(self.server.sheet.pairs)

    def _path(self) -> str | None:
        """What is asked for, behind the token; None where that is missing or the host is named otherwise."""
        named = self.headers.get("Host", "") in (self.server.host, self.server.host.replace(HOST, "localhost"))
        token, slash, path = self.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        return path if named and known and slash else None

    def _nothing(self) -> None:
        self._send(b"", "text/plain", HTTPStatus.NOT_FOUND)

    def _send(
        self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str = "default-src 'none'"
    ) -> None:
        told = {"Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": policy}
        told |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
        with contextlib.suppress(ConnectionError):  # the browser was closed
            self.send_response(status)
            for name, value in told.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)


def as_png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [C, H, W] as a PNG of at least `SHOWN` pixels a side, each pixel as a square; nothing in it but
    them."""
    times = max(1, -(-SHOWN // pixels.shape[-1]))
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.repeat(times, 0).repeat(times, 1))).save(content, "PNG")
    return content.getvalue()
