"""A headless Chromium that the tests drive, by its DevTools protocol over two pipes.

That needs nothing but the browser: no driver, no port, no package.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of the browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and wait for what comes of it."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (answer := self._receive()).get("id") != self._last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _load(self, url: str) -> None:
        """Go there, and wait until that is loaded, and not what was to be loaded before."""
        self.events.clear()
        expected = {"name": "load", "loaderId": self.send("Page.navigate", url=url)["loaderId"]}
        while not any(
            seen.get("method") == "Page.lifecycleEvent"
            and expected.items() <= seen["params"].items()
            for seen in self.events
        ):
            self.events.append(self._receive())

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, and wait until it is loaded and drawn."""
        # A page of which just the fragment differs would not be loaded again.
        self._load("about:blank")
        self._load(f"{path.resolve().as_uri()}#{fragment}")
        self.settle()

    def settle(self) -> None:
        """Wait until what was begun is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def until(self, condition: str) -> None:
        """Wait until a condition holds: what is seen may take any number of frames."""
        deadline = time.monotonic() + TIMEOUT
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"it never holds: {condition}")
            time.sleep(0.01)

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript; a promise is waited for."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"], indent=1))
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        picture = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(picture))

    def complaints(self) -> list[str]:
        """What went wrong in the page: exceptions, errors in the log, and requests to others."""
        found: list[str] = []
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(json.dumps(params["exceptionDetails"]))
                case "Log.entryAdded":
                    found.append(json.dumps(params["entry"]))
                case "Network.requestWillBeSent":
                    url = params["request"]["url"]
                    if not url.startswith(("file:", "data:", "about:")):
                        found.append(url)
        return found

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            if not _readable(self._from, deadline - time.monotonic()):
                raise TimeoutError("the browser does not answer")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise EOFError("the browser has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]


def _readable(descriptor: int, timeout: float = TIMEOUT) -> bool:
    return bool(select.select([descriptor], [], [], max(0.0, timeout))[0])


@contextmanager
def chromium(folder: Path, *, width: int = 1440, height: int = 900) -> Iterator[Page]:
    """Run a browser for the block, with a profile in ``folder``."""
    path = find_chromium()
    assert path is not None
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()

    def place() -> None:  # the browser's numbers for the pipes
        high = [os.dup(commands), os.dup(answers)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    # It is nobody's child here, so that the processes that it starts while a test runs are not
    # taken for that test's own.
    in_background = ["sh", "-c", '"$@" &', "sh"]
    process = subprocess.Popen(
        [
            *in_background, path,
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--mute-audio",
            "--disable-background-networking", "--hide-scrollbars",
            f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        # Without what the tests look for processes of their own by.
        env={key: value for key, value in os.environ.items() if not key.startswith("CRECHE")},
        pass_fds=(3, 4), preexec_fn=place, start_new_session=True,
    )  # fmt: skip
    os.close(commands)
    os.close(answers)
    process.wait(TIMEOUT)
    try:
        page = Page(to_browser, from_browser)
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            while _readable(from_browser) and os.read(from_browser, 1 << 20):
                pass  # until it is gone, and nobody can write any more
        os.close(to_browser)
        os.close(from_browser)
