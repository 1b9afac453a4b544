"""The status page and the client's report in a real browser, without a window.

Chromium is driven through chromedriver's HTTP interface (W3C WebDriver), for which
the standard library suffices.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.balancer import command, named, server_figures, status_address, visit_once
from tests.interop.support import ProgramTestCase, find, needs
from tests.support import confirm, free_port, http_request, wait_until

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *(
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ),
)
# Set this to a folder to look at what the browser saw.
PICTURES = os.environ.get("LAB_PICTURES")


def setUpModule() -> None:
    """Skip all where the browser or its driver is missing."""
    needs("chromium", "chromedriver")


class Browser:
    """One window of a headless Chromium."""

    def __init__(self, port: int, profile: Path) -> None:
        """Open a session at the chromedriver on `port`."""
        self._driver = f"127.0.0.1:{port}"
        self._session = ""
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "binary": find("chromium"),
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        answer = self._post(
            "/session",
            capabilities={
                "alwaysMatch": {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": logs,
                    "unhandledPromptBehavior": "accept",
                }
            },
        )
        self._session = f"/session/{answer['sessionId']}"

    def _post(self, path: str, **body: Any) -> Any:
        return self._request("POST", path, json.dumps(body).encode())

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        status, _, answer = http_request(
            self._driver, self._session + path, method, body=body, timeout=60
        )
        if status != 200:
            raise AssertionError(f"{method} {path}: {answer.decode()[:2000]}")
        return json.loads(answer)["value"]

    def close(self) -> None:
        """End the browser."""
        self._request("DELETE", "")

    def open(self, url: str) -> None:
        """Load a page, and wait until it is loaded."""
        self._post("/url", url=url)

    def run(self, script: str) -> Any:
        """Return what a script in the page returns."""
        return self._post("/execute/sync", script=script, args=[])

    def text(self) -> str:
        """Return the text that a reader sees."""
        return str(self.run("return document.body.innerText"))

    def devtools(self, method: str, **parameters: Any) -> Any:
        """Send one DevTools command."""
        return self._post("/goog/cdp/execute", cmd=method, params=parameters)

    def complaints(self) -> list[str]:
        """Return the console's warnings and errors since the last call."""
        entries = self._post("/se/log", type="browser")
        return [
            entry["message"]
            for entry in entries
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def requested(self) -> set[str]:
        """Return the addresses that pages asked for since the last call.

        Neither the browser's own first page counts, nor what a page has in itself.
        """
        found = set()
        for entry in self._post("/se/log", type="performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(message["params"]["request"]["url"])
        return {url for url in found if not url.startswith(("chrome:", "data:"))}

    def picture(self, name: str) -> bytes:
        """Return a picture of the window as PNG; keep it where asked to."""
        png = base64.b64decode(self._request("GET", "/screenshot"))
        if PICTURES:
            Path(PICTURES, f"{name}.png").write_bytes(png)
        return png


class BrowserTestCase(ProgramTestCase):
    """A test with a browser."""

    def browser(self) -> Browser:
        """Start a browser that ends with the test."""
        port = free_port()
        self.program("chromedriver", f"--port={port}", listens=port)
        browser = Browser(port, self.folder / "profile")
        self.addCleanup(browser.close)
        return browser

    def check_dark_and_narrow(self, browser: Browser, name: str) -> None:
        """Expect other colours in dark mode, and no sideways scrolling on a phone."""
        background = "return getComputedStyle(document.body).backgroundColor"
        colours = set()
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.devtools("Emulation.setEmulatedMedia", features=features)
            colours.add(browser.run(background))
            self.assertGreater(len(browser.picture(f"{name}-{scheme}")), 5000)
        self.assertEqual(len(colours), 2, "dark mode looks like light mode")
        browser.devtools(
            "Emulation.setDeviceMetricsOverride",
            **{"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
        )
        browser.picture(f"{name}-phone")
        width = browser.run("return document.documentElement.scrollWidth")
        self.assertLessEqual(width, 391, "wider than a phone")


class StatusPage(BrowserTestCase):
    """The page shows what happens, and its buttons work."""

    def test_page_lives_and_its_buttons_change_a_state(self) -> None:
        backends = [self.backend(named) for _ in range(3)]
        balancer = self.balance(backends)
        where = status_address(balancer)
        browser = self.browser()
        browser.open(f"http://{where}/")
        for backend in backends:
            self.wait_for_text(browser, backend.address)
        self.wait_for_text(browser, "UP")

        stop = threading.Event()

        def traffic() -> None:
            while not stop.wait(0.02):
                visit_once(balancer)

        thread = threading.Thread(target=traffic, name="traffic")
        thread.start()
        try:
            held = self.dial(balancer)
            self.wait_for_text(browser, str(held.getsockname()[1]))
            self.wait_for_change(browser, browser.text, "the figures")
            plots = "return [...document.querySelectorAll('svg, canvas')].map(p => "
            markup = plots + "p.toDataURL ? p.toDataURL() : p.outerHTML).join()"
            self.wait_for_change(browser, lambda: browser.run(markup), "the plots")
        finally:
            stop.set()
            thread.join(30)

        first = backends[0]
        self.press(browser, first.address, "drain")
        wait_until(
            lambda: server_figures(balancer, first)["state"] == "DRAIN", what="DRAIN"
        )
        self.wait_for_text(browser, "DRAIN")
        self.press(browser, first.address, "ready")
        wait_until(lambda: server_figures(balancer, first)["state"] == "UP", what="UP")

        self.assertEqual(command(balancer, backends[1], "maint"), 200)
        self.wait_for_text(browser, "MAINT")
        self.check_dark_and_narrow(browser, "status")
        self.assertEqual(browser.complaints(), [])
        own = f"http://{where}/"
        foreign = {url for url in browser.requested() if not url.startswith(own)}
        self.assertEqual(foreign, set())

    def wait_for_text(self, browser: Browser, text: str) -> None:
        """Wait until the page shows a text."""
        wait_until(lambda: text in browser.text(), 20, f"{text!r} on the page")

    def wait_for_change(
        self, browser: Browser, look: Callable[[], object], what: str
    ) -> None:
        """Wait until something looks different from now."""
        before = look()
        self.assertTrue(before, f"{what} are not there")
        wait_until(lambda: look() != before, 20, f"{what} to change")

    def press(self, browser: Browser, address: str, label: str) -> None:
        """Press a server's button: the one in the smallest part with its address."""
        pressed = browser.run(
            f"""
            const wanted = [...document.querySelectorAll('button')].filter(
                b => new RegExp({json.dumps(label)}, 'i').test(
                    b.innerText + ' ' + b.title + ' ' + b.ariaLabel));
            for (const button of wanted) {{
                let part = button;
                while (part && !/:\\d+/.test(part.innerText)) part = part.parentElement;
                if (part && part.innerText.includes({json.dumps(address)})) {{
                    button.click();
                    return true;
                }}
            }}
            return false;
            """
        )
        self.assertTrue(pressed, f"no button {label} for {address}")

    def test_plots_are_there_at_once_and_of_one_scale(self) -> None:
        backends = [self.backend(named) for _ in range(8)]
        balancer = self.balance(backends, "--algorithm", "leastconn")
        where = status_address(balancer)

        def is_kept() -> bool:
            visit_once(balancer)
            kept = json.loads(http_request(where, "/history.json")[2])
            return len(kept["ages_s"]) >= 3

        wait_until(is_kept, 20, "three seconds of history")
        browser = self.browser()
        browser.open(f"http://{where}/")
        points = (
            "return [...document.querySelectorAll('polyline')].map("
            "p => p.points.length)"
        )
        plots = 3 * len(backends) + 1
        wait_until(lambda: len(browser.run(points)) == plots, 20, "all the plots")
        self.assertGreaterEqual(min(browser.run(points)), 3)
        self.wait_for_text(browser, "leastconn")
        self.wait_for_text(browser, "listening on")  # the first of the events
        scales = browser.run(
            "return [...document.querySelectorAll('article')].map(a => "
            "[...a.querySelectorAll('.scale')].map(s => s.innerText).join())"
        )
        self.assertEqual((len(scales), len(set(scales))), (8, 1), scales)

    def test_nothing_is_lost_on_a_phone_and_big_is_big(self) -> None:
        balancer = self.balance([self.backend(named)])
        browser = self.browser()
        browser.devtools(
            "Emulation.setDeviceMetricsOverride",
            **{"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
        )
        held = self.dial(balancer)
        browser.open(f"http://{status_address(balancer)}/")
        self.wait_for_text(browser, str(held.getsockname()[1]))
        edges = browser.run(
            "return [...document.querySelectorAll('th, td')].map("
            "cell => cell.getBoundingClientRect().right)"
        )
        self.assertEqual(len(edges), 12)
        self.assertLess(max(edges), 390)
        sizes = (
            "return [...document.querySelectorAll('body *')].filter(n => n.innerText)"
            ".map(n => parseFloat(getComputedStyle(n).fontSize))"
        )
        self.assertGreaterEqual(min(browser.run(sizes)), 10)
        browser.open(f"http://{status_address(balancer)}/#big")
        self.wait_for_text(browser, "1 live")
        self.assertGreater(max(browser.run(sizes)), 30)

    def test_page_says_when_the_balancer_is_gone(self) -> None:
        balancer = self.balance([self.backend(named)])
        browser = self.browser()
        browser.open(f"http://{status_address(balancer)}/")
        self.wait_for_text(browser, "UP")
        before = browser.text()
        balancer.stop()
        wait_until(lambda: browser.text() != before, 20, "the page to say so")
        self.assertRegex(browser.text(), r"(?i)no answer|gone|lost|unreachable|stopped")


class Report(BrowserTestCase):
    """The client's report is one file that shows everything by itself."""

    def test_report_shows_four_plots_and_asks_nobody(self) -> None:
        servers = [self.backend(confirm()) for _ in range(3)]
        balancer = self.balance(servers)
        report = self.folder / "report.html"
        result = self.client(
            *(20, "--messages", 30, "--target", balancer.address),
            *("--report", report, "--quiet"),
        )
        self.assertEqual(result.returncode, 0, result)
        browser = self.browser()
        browser.requested()
        browser.open(report.as_uri())
        sizes = browser.run(
            "return [...document.querySelectorAll('svg')].map("
            "s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])"
        )
        plots = [size for size in sizes if size[0] > 200 and size[1] > 80]
        self.assertEqual(len(plots), 4, sizes)
        text = browser.text()
        for server in servers:
            self.assertIn(str(server.port), text)
        for word in ("latency", "response time", "throughput"):
            self.assertIn(word, text.lower())
        self.assertIn("600", text)
        self.check_dark_and_narrow(browser, "report")
        self.assertEqual(browser.complaints(), [])
        self.assertEqual(browser.requested(), {report.as_uri()})
        kinds = browser.run("return [...document.scripts].map(s => s.type)")
        self.assertLessEqual(set(kinds), {"application/json"}, "a script that runs")
