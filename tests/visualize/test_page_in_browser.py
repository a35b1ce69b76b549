"""The page of an evaluation in headless Chromium, from file://: filter, order, viewer, and names that mean harm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from san.visualize.page import ClassLine, Page, Row, Strip, render_page

EVIL = "<script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\">#?'&.jpg"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    running.set_window_size(1100, 900)
    yield running
    running.quit()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows = []
    for index, name in enumerate(["a.jpg", "b.jpg", EVIL.replace("/", ""), "d.jpg"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 20), (60 * index, 90, 90)).save(tmp_path / f"{index}#?%41.png")
        strip = Strip(f"{index}#?%41.png", f"{index}#?%41.png", (80, 20))
        classes = ("red star", "cat") if index % 2 else ("red star", EVIL)
        rows.append(Row(name, 10.0 * index if index < 3 else None, 50.0, (strip,), (ClassLine(EVIL, 1.0),), classes))
    written = tmp_path / "index.html"
    written.write_text(render_page(Page("t", [], ["image"], rows, classes=[ClassLine("cat", 1.0)])), encoding="utf-8")
    return written


def names(browser: Any) -> list[str]:
    script = "return [...document.querySelectorAll('article:not([hidden])')].map((row) => row.dataset.name)"
    return list(browser.execute_script(script))


def test_the_page_works_and_no_name_runs(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    evil = EVIL.replace("/", "")
    assert names(browser) == ["a.jpg", "b.jpg", evil, "d.jpg"]
    choose = (
        "const box = document.querySelector('#sort'); box.value = arguments[0]; box.dispatchEvent(new Event('change'))"
    )
    browser.execute_script(choose, "best")
    assert names(browser) == [evil, "b.jpg", "a.jpg", "d.jpg"]  # without a score last
    browser.find_element("id", "filter").send_keys(" CAT ")
    assert names(browser) == ["b.jpg", "d.jpg"]
    assert browser.find_element("id", "count").text == "2 of 4 images"
    browser.find_element("css selector", "article:not([hidden]) a.strip").click()
    viewer = browser.find_element("id", "viewer")
    assert browser.find_element("id", "viewer-name").text == "b.jpg"
    viewer.send_keys("\ue014")  # arrow to the right
    assert browser.find_element("id", "viewer-name").text == "d.jpg"
    browser.execute_script("document.querySelector('#viewer').close()")
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element("id", "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    browser.execute_script("document.querySelector('#filter').value = ''; update()")
    pictures = "[...document.images].filter((image) => image.src).map((image) => image.decode())"
    wait = f"const done = arguments[0]; Promise.all({pictures}).then(() => done(true), () => done(false))"
    assert browser.execute_async_script(wait)  # every picture is found, with any name
    assert browser.title == "t"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_large_picture_can_be_read_on_a_phone(browser: Any, page: Path) -> None:
    """It keeps its height and scrolls sideways; the page itself does not."""
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert browser.execute_script("return document.querySelector('#theme').getClientRects()[0].height") < 50
        browser.execute_async_script(
            "const image = document.querySelector('#viewer-image'); image.onload = arguments[0];"
            "document.querySelector('a.strip').click()"
        )
        script = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
        assert browser.execute_script(script, "#viewer-image")["height"] > 400
        assert browser.execute_script(script, "#viewer button")["right"] <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
