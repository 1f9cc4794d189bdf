"""A headless browser for tests of pages, driven over its own pipe (the DevTools protocol): no driver is installed."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "MIDEFENSE_BROWSER"
SECONDS = 60  # for one answer, on a machine that is busy
OPTIONS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """The browser's program: that of the variable `MIDEFENSE_BROWSER`, else the first known one of the path."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One process and one tab. Use it as a context manager; `profile` is an empty folder for it."""

    def __init__(self, program: str, profile: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # The program reads from 3 and writes to 4; numbers far from both, so that neither is overwritten on the way.
        read, write = (fcntl.fcntl(pipe, fcntl.F_DUPFD, 50) for pipe in (theirs_in, theirs_out))

        def place() -> None:
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,
            pass_fds=(3, 4),
            start_new_session=True,
        )
        for pipe in (theirs_in, theirs_out, read, write):
            os.close(pipe)
        self._in, self._out, self._buffer, self._numbers = ours_in, ours_out, b"", itertools.count(1)
        self._session, self.seen = None, []

    def __enter__(self) -> "Browser":
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.send("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Show a file in a window of this size; below 720 pixels as on a phone. Fails if its script does."""
        mobile = width < 720
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.seen.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda: any(event["method"] == "Page.loadEventFired" for event in self.seen))
        assert not self.errors(), self.errors()

    def errors(self) -> list[str]:
        """What the page's script failed at since it was opened."""
        thrown = (event["params"] for event in self.seen if event["method"] == "Runtime.exceptionThrown")
        return [one["exceptionDetails"].get("exception", {}).get("description", str(one)) for one in thrown]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened, its own and those within it apart."""
        asked = (event["params"] for event in self.seen if event["method"] == "Network.requestWillBeSent")
        return [one["request"]["url"] for one in asked if not one["request"]["url"].startswith("data:")]

    def run(self, script: str) -> object:
        """The value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write what is shown as PNG; `whole`: the page down to its end."""
        shown = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shown["data"]))

    def send(self, method: str, **parameters: object) -> dict:
        """One command and its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda: None, number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _until(self, done, number: int | None = None) -> dict:
        """Read messages until the answer `number` comes, or `done` says so."""
        end = time.monotonic() + SECONDS
        while not done():
            message = self._message(end)
            if number is not None and message.get("id") == number:
                return message
            if "method" in message:
                self.seen.append(message)
        return {}

    def _message(self, end: float) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {SECONDS} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise OSError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
