"""A headless Chromium that opens pages at a given width and tells how they came out, for tests of what people read.

Driven over a pair of pipes by the DevTools protocol (JSON messages that end in a zero byte), so that tests need no
library and no port for it. Nothing is asked of the network.
"""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1280, 390)
"""CSS pixels of a laptop and of a phone."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
HANGS = 120
"""Seconds without a word after which it is given up."""
_MEASURE = """(() => {
  const page = document.documentElement, within = 0.5;
  document.querySelectorAll("details").forEach(part => part.open = true);
  const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
  const boxed = element => element && (scrolls(element) || boxed(element.parentElement));
  const name = element => `${element.tagName}.${element.getAttribute("class")}: ${element.textContent}`.slice(0, 80);
  const wide = [], cut = [];
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), svg = element.closest("svg");
    if (!box.width || (svg && svg !== element && element.tagName !== "text")) continue;
    if ((box.left < -within || box.right > page.clientWidth + within) && !boxed(element.parentElement))
      wide.push(name(element));
    if (getComputedStyle(element).overflowX === "hidden" && element.scrollWidth > element.clientWidth + 1)
      cut.push(name(element));
    if (element.tagName === "text") {
      const outer = svg.getBoundingClientRect();
      if (box.left < outer.left - 1 || box.right > outer.right + 1) cut.push(name(element));
    }
  }
  return {width: page.clientWidth, content: page.scrollWidth, wide, cut};
})()"""
"""With everything opened: elements that reach beyond the page outside of any box that scrolls, and text cut off."""


def find() -> str | None:
    """The program, if this machine has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Opened:
    """How a page came out."""

    width: int
    """CSS pixels that it had."""
    content: int
    """CSS pixels that it took."""
    wide: list[str]
    """Elements beyond the page's edges, but for what scrolls in a box of its own."""
    cut: list[str]
    """Elements whose text does not fit."""
    problems: list[str] = field(default_factory=list)
    """Console messages, exceptions, failed requests."""
    requests: list[str] = field(default_factory=list)
    """Addresses asked for, the page's own apart."""


class Browser:
    """One running Chromium. `start` makes it."""

    def __init__(self, to: int, answers: int):
        self._to, self._answers = to, answers
        self._rest = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, page: Path, width: int, *, screenshot: Path | None = None) -> Opened:
        """Loads a file as a phone does if `width` is below 800 CSS pixels, else as a desktop does, and measures it.

        Args:
          page: an HTML file.
          width: of the screen, in CSS pixels.
          screenshot: where to keep a PNG of the whole page, as it is before everything is opened.
        """
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
        self._ask("Emulation.setDeviceMetricsOverride", screen)
        self._events.clear()
        address = page.absolute().as_uri()
        self._ask("Page.navigate", {"url": address})
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        if screenshot:
            taken = self._ask("Page.captureScreenshot", {"captureBeyondViewport": True})
            screenshot.write_bytes(base64.b64decode(taken["data"]))
        found = self._ask("Runtime.evaluate", {"expression": _MEASURE, "returnByValue": True})
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        problems = [
            json.dumps(event["params"])
            for name in (
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
                "Log.entryAdded",
                "Network.loadingFailed",
            )
            for event in self._of(name)
        ]
        others = [url for url in asked if url != address]
        return Opened(**found["result"]["value"], problems=problems, requests=others)

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event["method"] == method]

    def _ask(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], HANGS)
            more = os.read(self._answers, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError("Chromium has ended" if ready else f"Chromium says nothing for {HANGS} seconds")
            self._rest += more
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def start(program: str, profile: Path) -> Iterator[Browser]:
    """Runs Chromium with a profile of its own, in an empty folder."""
    its_input, to = os.pipe()
    answers, its_output = os.pipe()

    def connect() -> None:
        # It reads from descriptor 3 and writes to 4. Copied high first: either may be 3 or 4 now.
        high = os.dup2(its_input, 100), os.dup2(its_output, 101)
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_input)
    os.close(its_output)
    try:
        yield Browser(to, answers)
    finally:
        os.close(to)  # It ends when its input does.
        os.close(answers)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium for all tests of the process; where there is none, they are skipped, and the summary says so."""
    if not (program := find()):
        pytest.skip(f"no Chromium on this machine: none of {', '.join(NAMES)}")
    with start(program, tmp_path_factory.mktemp("chromium")) as running:
        yield running


def check_layout(browser: Browser, page: Path) -> None:
    """At both widths nothing is wider than the page, no text is cut off, nothing is asked for, no problem is told."""
    for width in WIDTHS:
        opened = browser.open(page, width)
        assert opened == Opened(width, width, [], []), f"{page} at {width} pixels: {opened}"
