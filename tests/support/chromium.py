"""Driver of a real Chromium without a display, by the DevTools protocol over pipes; for tests of pages."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which containers do not offer
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """Path of an installed Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One tab. Everything waits: a call returns when the browser has answered.

    size: of the window; dark: preferred color scheme. Without a network: every address but file: is unreachable.
    """

    def __init__(self, size: tuple[int, int] = (1360, 1000), dark: bool = False):
        program = find_chromium()
        assert program is not None
        self.errors: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (to_read, self._write), (self._read, to_write) = os.pipe(), os.pipe()
        self._buffer, self._number = b"", 0

        def pipes_to_3_and_4() -> None:
            # Copies well above, so that neither is closed when 3 and 4 are taken.
            first, second = (fcntl.fcntl(pipe, fcntl.F_DUPFD, 20) for pipe in (to_read, to_write))
            os.dup2(first, 3)
            os.dup2(second, 4)

        self._process = subprocess.Popen(
            [
                program,
                *_FLAGS,
                f"--user-data-dir={self._profile.name}",
                "--host-resolver-rules=MAP * ~NOTFOUND",
            ],
            preexec_fn=pipes_to_3_and_4,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._session = ""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")
        width, height = size
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.scheme("dark" if dark else "light")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def scheme(self, name: str) -> None:
        """Prefer "light" or "dark"."""
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def downloads_to(self, folder: Path) -> None:
        """Folder of files that the page downloads."""
        self._send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def open(self, page: Path, fragment: str = "") -> None:
        """Open a file and wait until its explorer says that it is ready."""
        self._send("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.wait("document.documentElement?.dataset.ready !== undefined")

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression, promises awaited."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"still not true: {script}; errors of the page: {self.errors}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """Visible text of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def center(self, selector: str) -> tuple[float, float]:
        """Middle of an element in the window, which is scrolled to it."""
        box = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); "
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        x, y, width, height = self.run(box)
        return x + width / 2, y + height / 2

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y = self.center(selector)
        self.click_at(x, y)

    def click_at(self, x: float, y: float) -> None:
        """Click a point of the window."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, x: float, y: float, down: float) -> None:
        """Turn the wheel at a point of the window."""
        self._send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=down)

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self._send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key by its name, such as Enter or ArrowDown."""
        codes = {
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": key}
        for kind in ("keyDown" if "text" in more else "rawKeyDown", "keyUp"):
            self._send("Input.dispatchKeyEvent", type=kind, key=key, **more)

    def picture(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"])

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what a page's console would show in red."""
        if event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(str(event["params"]["entry"]["text"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))
