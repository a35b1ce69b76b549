"""The page on a phone, in a folder of a proxy and in another site's frame."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="Gradio is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")
from san.demo.guard import answer
from san.demo.server import DemoServer
from tests.demo.browser import Page, needs_browser

pytestmark = needs_browser
WIDTH, HEIGHT = 390, 844


@pytest.fixture(scope="module")
def phone(driver, demo):
    """The page on a touch screen."""
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield Page(driver, demo.url)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def box(page, selector):
    return page.js("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)


def tap(page, x, y):
    """A finger at a place, in parts of the picture."""
    stage = box(page, ".san-stage")
    point = {"x": stage["left"] + x * stage["width"], "y": stage["top"] + y * stage["height"]}
    for kind, points in (("touchStart", [point]), ("touchEnd", [])):
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


@pytest.fixture
def photo(tmp_path):
    """Three times as many pixels as are taken; stored lying, upright by its EXIF, then red above."""
    pixels = np.full((1000, 1200, 3), 90, np.uint8)
    pixels[:, :400] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "IMG_0042.jpg"
    Image.fromarray(pixels).save(path, quality=90, exif=exif)
    return path


def test_a_photo_is_shrunk_upright_and_its_result_shown(phone, photo, demo):
    phone.js("window.scrollTo(0, 0)")
    phone.choose(photo)
    phone.wait_for_title("IMG_0042.jpg")
    width, height = phone.js("const c = document.querySelector('.san-colours'); return [c.width, c.height]")
    assert height / width == pytest.approx(1.2, abs=0.01)
    assert 0.95 * demo.service.limits.max_pixels < width * height <= demo.service.limits.max_pixels
    colors = phone.js(
        "const c = document.createElement('canvas'), p = document.querySelector('.san-picture');"
        "c.width = p.naturalWidth; c.height = p.naturalHeight; const x = c.getContext('2d'); x.drawImage(p, 0, 0);"
        "return [0.1, 0.9].map(y => [...x.getImageData(c.width / 2, y * c.height, 1, 1).data])"
    )
    assert colors[0][0] > 240 and colors[0][1] < 20, "what was above is above"
    assert abs(colors[1][0] - 90) < 5
    phone.wait(lambda: phone.text("upload").endswith(f"1000 × 1200 pixels, shrunk to {width} × {height}"), "its size")
    phone.wait(lambda: 0 <= box(phone, ".san-stage")["top"] < HEIGHT / 4, "the result to be scrolled to")


def test_the_page_uses_the_screen(phone):
    assert phone.js("return document.documentElement.scrollWidth") == WIDTH
    for selector in (".san-drop", "#san-words", "#san-segment", ".san-stage", ".san-tools", ".san-legend"):
        assert box(phone, selector)["width"] > 0.9 * WIDTH, selector


def test_a_tap_names_a_class(phone, demo):
    phone.js("document.querySelectorAll('.san-examples button')[1].click()")
    phone.wait_for_title(demo.service.examples[1].title)
    phone.js("document.querySelector('.san-stage').scrollIntoView()")
    tap(phone, 0.05, 0.05)
    phone.wait(lambda: phone.text("tip") == "dotted ground", "the name")
    assert phone.text("readout").startswith("dotted ground · ")
    assert phone.js("return document.querySelector('[aria-pressed=true] .san-name').textContent") == "dotted ground"
    tap(phone, 0.05, 0.05)
    phone.wait(lambda: not phone.js("return document.querySelectorAll('[aria-pressed=true]').length"), "it is let go")
    assert phone.text("tip") == "dotted ground", "and still named"


def test_other_words_scroll_to_the_result_and_long_ones_are_cut(phone):
    phone.js("window.scrollTo(0, 0)")
    phone.segment(f"dotted ground, {'a class of a very long name ' * 20}, {'x' * 300}")
    phone.wait(lambda: box(phone, ".san-stage")["top"] < HEIGHT / 2, "the result to be scrolled to")
    assert phone.js("return document.documentElement.scrollWidth") == WIDTH
    assert all(
        height < 70
        for height in phone.js("return [...document.querySelectorAll('.san-class')].map(e => e.offsetHeight)")
    )


def test_plates_stay_on_the_picture(phone, demo):
    phone.js("document.querySelectorAll('.san-examples button')[2].click()")
    phone.wait_for_title(demo.service.examples[2].title)
    phone.segment("a cyan square at the left border, white ring, green square, red bar, dotted ground")
    boxes = (
        "[...document.querySelectorAll('.san-stage, .san-labels span')].map(e => e.getBoundingClientRect().toJSON())"
    )
    stage, *plates = phone.js(f"return {boxes}")  # at one time: the page may be scrolling
    assert len(plates) >= 3
    for plate in plates:
        assert stage["left"] <= plate["left"] and plate["right"] <= stage["right"]
        assert stage["top"] <= plate["top"] and plate["bottom"] <= stage["bottom"]


HTML, JSON = b"<h1>Bad gateway</h1>", b'{"detail": "too many"}'
BROKEN = {  # part of the address, status, content, whether it is whole, what is said
    "a proxy's error": ("queue/join", 502, HTML, True, "The server could not answer (HTTP 502)."),
    "a refusal": ("queue/join", 429, JSON, True, "Too many."),
    "no stream": ("queue/data", 502, HTML, True, "The server could not answer (HTTP 502)."),
    "a stream that breaks off": ("queue/data", 200, b'data: {"msg"', False, "The server does not answer."),
    "half a result": ("san/result", 200, b'{"image', False, "The server does not answer."),
    "an upload too large for a proxy": ("san/image", 413, HTML, True, "x.png was not taken. The file is too large"),
}


@pytest.mark.parametrize("kind", [*BROKEN, "no network"])
def test_a_request_that_fails_is_said_and_the_next_one_works(driver, demo, tmp_path, kind):
    part, *answered, message = BROKEN.get(kind, ("", "The server does not answer."))
    Image.new("RGB", (30, 20)).save(tmp_path / "x.png")
    page = Page(driver, demo.url)

    def ask():
        if part == "san/image":
            page.choose(tmp_path / "x.png")
        else:
            page.js("document.querySelectorAll('.san-examples button')[2].click()")

    if part:
        demo.broken[part] = tuple(answered)
    else:
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*queue/join*"]})
    try:
        ask()
        page.wait_for_message(message)
        shown = "return [...document.querySelectorAll('.toast-wrap')].filter(e => e.offsetHeight).length"
        assert not page.js(shown), "Gradio's own words are not shown"
    finally:
        demo.broken.clear()
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    ask()
    page.wait_for_title("x.png" if part == "san/image" else demo.service.examples[2].title)
    page.wait(lambda: page.text("message") == "", "the message to go")


@contextlib.contextmanager
def another_site(content):
    """A page of another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(content().encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def behind(app, folder, *, stripped):
    """A proxy that serves an application in a folder, and keeps or removes the folder's name."""

    async def proxy(scope, receive, send):
        if scope["type"] != "http":
            if not stripped:  # the other one runs already
                await app(scope, receive, send)
        elif not f"{scope['path']}/".startswith(folder):
            await answer(send, 404, {})
        else:
            path = scope["path"].removeprefix(folder.rstrip("/")) if stripped else scope["path"]
            await app({**scope, "path": path}, receive, send)

    return proxy


def test_in_a_folder_and_in_a_frame(demo, driver):
    from san.demo.page import build_app

    with another_site(lambda: f'<iframe src="{url}demo/" width="1000" height="900"></iframe>') as site:
        guard = build_app(demo.service, root_path="/demo", frame_ancestors=[site])
        with DemoServer(behind(guard, "/demo/", stripped=False), demo.service.limits).running() as url:
            page = Page(driver, f"{url}demo")
            assert driver.current_url == f"{url}demo/"
            page.segment("green star, plain ground")
            driver.get(site)
            driver.switch_to.frame(0)
            page.wait(page.classes, "the first example, in the frame")
            page.segment("white square, plain ground")
            driver.switch_to.default_content()


def test_a_folder_that_the_server_does_not_know_is_said(demo, driver):
    with DemoServer(behind(demo.guard, "/bare/", stripped=True), demo.service.limits).running() as url:
        page = Page(driver, f"{url}bare/")
        page.wait_for_message("Whoever runs it: start it with --root-path /bare.")
        page.js("document.querySelectorAll('.san-examples button')[1].click()")
        time.sleep(1)
        page.wait_for_message("Whoever runs it: start it with --root-path /bare.")
