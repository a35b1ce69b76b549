"""The picture of the demo in the documentation, made by a browser."""

from __future__ import annotations

import pytest

from san.demo.examples import shapes_examples
from san.demo.limits import Limits
from san.demo.service import DemoService
from san.inference.predictor import Predictor

pytest.importorskip("gradio", reason="Gradio is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")
from san.demo.page import build_app
from san.demo.server import DemoServer
from tests.demo.browser import Page, needs_browser
from tests.pictures import check_picture

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture
def url():
    """A demo with the limits that users have."""
    service = DemoService(Predictor.from_pretrained("shapes"), shapes_examples(), Limits())
    with DemoServer(build_app(service), service.limits).running() as url:
        yield url
    service.close()


def test_the_picture_of_the_documentation_is_made_again(driver, url, tmp_path):
    """The third example, with the mouse on one of its things."""
    example = shapes_examples()[2]
    metrics = {"width": 1200, "height": 1130, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    try:
        page = Page(driver, url)
        page.js("document.querySelectorAll('.san-examples button')[2].click()")
        page.wait_for_title(example.title)
        page.wait(lambda: sorted(page.classes()) == sorted(example.words.split(", ")), "the example's classes")
        page.point(0.5, 0.75)
        page.js("window.scrollTo(0, 0)")
        page.js("document.querySelector('.san-times').textContent = ''")  # of this machine, which tests keep busy
        driver.save_screenshot(str(tmp_path / "demo.png"))
    finally:
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": False})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    check_picture(tmp_path / "demo.png", "demo.png", width=980)
