"""The page in headless Chromium, driven through its DevTools protocol."""

import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from .conftest import Server

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function that sends a DevTools command to a new tab and gives its result; `tab("events")` gives the events."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}, which this machine lacks")
    options = ["--headless", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={tmp_path}", *QUIET]
    browser = subprocess.Popen(
        [CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        found = tmp_path / "DevToolsActivePort"
        until(lambda: found.exists() and len(found.read_text().splitlines()) == 2)
        port = found.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            (address,) = [entry["webSocketDebuggerUrl"] for entry in json.load(answer) if entry["type"] == "page"]
        with connect(address, max_size=None) as channel:
            numbers, events = itertools.count(1), []

            def send(method: str, **params: Any) -> Any:
                if method == "events":
                    return events
                number = next(numbers)
                channel.send(json.dumps({"id": number, "method": method, "params": params}))
                while (message := json.loads(channel.recv(timeout=30))).get("id") != number:
                    events.append(message)
                assert "error" not in message, message
                return message["result"]

            yield send
    finally:
        browser.kill()
        browser.wait()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_the_page(server: Server, tab: Callable[..., Any]) -> None:
    def value(expression: str) -> Any:
        return tab("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    for domain in ("Page", "Runtime", "Network", "Log"):
        tab(f"{domain}.enable")
    tab("Emulation.setDeviceMetricsOverride", width=1000, height=900, deviceScaleFactor=1, mobile=False)
    tab("Page.navigate", url=server.address)
    until(lambda: value("document.querySelectorAll('.models h2').length") == 2)
    nasty = "<b>Once</b>"
    value(f"document.getElementById('prompt').value = {json.dumps(nasty)}")
    settings = {
        "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": 0.3,
        "frequency_penalty": 0.2, "max_tokens": 120, "seed": 1,
    }  # fmt: skip
    for name, number in settings.items():
        value(f"document.getElementById('{name}').value = {number}")
    value(r"document.getElementById('stop_at').value = 'q\\n'; document.getElementById('go').click()")
    until(lambda: value("[...document.querySelectorAll('.state')].every(s => /asked for|ended/.test(s.textContent))"))
    for name in ("base", "dpo"):
        body = json.dumps({"model": name, "prompt": nasty, "stop": "q\n", **settings}).encode()
        with urllib.request.urlopen(f"{server.address}/v1/completions", body) as answer:
            expected = json.load(answer)["choices"][0]["text"]
        assert value(f"document.getElementById('text-{name}').textContent") == nasty + expected

    box = value(
        "JSON.stringify(document.querySelector('#text-dpo span').getClientRects()[0].toJSON())"
    )  # of the first token
    place = json.loads(box)
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    tab("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    until(lambda: value("document.getElementById('hint').style.display") == "block")
    assert value("document.querySelectorAll('#hint tr.drawn').length") >= 1
    assert value("document.querySelectorAll('#hint tr').length") >= 5
    assert "%" in value("document.getElementById('hint').textContent")

    value("document.getElementById('prompt').value = 'x'.repeat(600); document.getElementById('go').click()")
    until(lambda: value("document.querySelectorAll('.state.wrong').length") == 2)
    assert "context holds 512 tokens" in value("document.querySelector('.state.wrong').textContent")

    events = tab("events")
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [request for request in asked if request["documentURL"].startswith(server.address)]  # not a start page's
    assert len(asked) >= 6
    assert all(request["request"]["url"].startswith(server.address) for request in asked)
    assert not [event for event in events if event["method"] == "Runtime.exceptionThrown"]
