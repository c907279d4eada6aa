"""A small driver of Chromium over its DevTools protocol: open a page, look, press keys, count requests.

with Browser() as browser:
    page = browser.open(path)
    page.evaluate("document.title")
"""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --mute-audio "
    "--force-color-profile=srgb --font-render-hinting=none --remote-allow-origins=* --remote-debugging-port=0"
).split()
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Escape": 27, "Tab": 9, " ": 32, "+": 187, "-": 189}


def need_browser() -> str:
    "The path of Chromium; the test is skipped where there is none."
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is at hand: apt-get install chromium")
    return found


class Browser:
    "One headless Chromium."

    def __init__(self):
        executable = need_browser()
        self.profile = Path(tempfile.mkdtemp(prefix="smc-browser-"))
        command = [executable, *OPTIONS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = self._port()

    def _port(self, patience: float = 60) -> int:
        "The port it listens on, once it says so."
        told, until = self.profile / "DevToolsActivePort", time.monotonic() + patience
        while time.monotonic() < until:
            if told.is_file() and "\n" in (text := told.read_text()):
                return int(text.split("\n")[0])
            time.sleep(0.05)
        self.close()
        pytest.skip("Chromium does not start here")

    def open(
        self,
        path: Path | str,  # a file or an address
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
    ) -> "Page":
        "A new page of that size, once it has loaded."
        return Page(self, path if "://" in str(path) else Path(path).resolve().as_uri(), width, height, dark)

    def close(self) -> None:
        "End it and forget its profile."
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Page:
    "A page: `errors` of its console, `requests` that it made."

    def __init__(self, browser: Browser, address: str, width: int, height: int, dark: bool):
        import http.client

        import websocket

        ask = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=30)
        ask.request("PUT", "/json/new?about:blank")
        target = json.loads(ask.getresponse().read())
        self.socket = websocket.create_connection(
            target["webSocketDebuggerUrl"], timeout=60, suppress_origin=True
        )
        self.number, self.loaded = 0, False
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=theme)
        self.resize(width, height)
        self.go(address)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        "Call a method of the protocol; what happens meanwhile is noted."
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        "Errors, requests and the end of loading."
        method, told = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value", "")) for part in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])

    def go(self, address: str) -> None:
        "Load an address."
        self.loaded = False
        self.send("Page.navigate", url=address)
        self.wait_for(lambda: self.loaded)

    def wait_for(self, what: Any, patience: float = 40) -> None:
        "Wait until a condition holds: a function, or an expression of the page."
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if self.evaluate(what) if isinstance(what, str) else what() or (self.evaluate("0") and what()):
                return
            time.sleep(0.02)
        raise TimeoutError(f"{what}: not within {patience} s; errors: {self.errors[:3]}")

    def evaluate(self, expression: str) -> Any:
        "The value of an expression; a promise is awaited."
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        "The size of the window."
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def settle(self) -> None:
        "Wait until two frames have been drawn."
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))"
        )

    def screenshot(self, path: Path | None = None, of: str | None = None) -> bytes:
        "The page, or one element of it, as PNG."
        self.settle()
        clip = {"clip": {**self.box(of), "scale": 1}} if of else {}
        content = base64.b64decode(self.send("Page.captureScreenshot", format="png", **clip)["data"])
        if path:
            path.write_bytes(content)
        return content

    def box(self, selector: str) -> dict[str, float]:
        "x, y, width and height of an element on the screen."
        return self.evaluate(
            f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
        )

    def place(self, selector: str) -> tuple[float, float]:
        "The middle of an element on the screen."
        box = self.box(selector)
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def hover(self, x: float, y: float) -> None:
        "Move the mouse there."
        self.mouse("mouseMoved", x, y)

    def click(self, where: str | tuple[float, float]) -> None:
        "Click an element, which is brought into view, or a place."
        if isinstance(where, str):
            self.evaluate(f"document.querySelector({json.dumps(where)}).scrollIntoView({{block: 'nearest'}})")
            where = self.place(where)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, *where, button="left", clickCount=1)

    def wheel(self, x: float, y: float, by: float) -> None:
        "Turn the wheel there; negative: away from oneself."
        self.mouse("mouseWheel", x, y, deltaX=0, deltaY=by)

    def key(self, name: str) -> None:
        "Press a key, such as ArrowRight."
        code = {
            "key": name,
            "code": "Space" if name == " " else name,
            "windowsVirtualKeyCode": KEYS.get(name, 0),
        }
        text = {"text": "\r" if name == "Enter" else name} if len(name) == 1 or name == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def leaving(self) -> list[str]:
        "Requests that left this machine."
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def close(self) -> None:
        "Close the page."
        self.send("Page.close")
        self.socket.close()
