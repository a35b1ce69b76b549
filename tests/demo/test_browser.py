"""The page in a real browser, without a screen and without a network beyond this machine."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.shapes.world import NAMES
from san.web.words import Words

pytest.importorskip("gradio", reason="Gradio is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.demo.browser import Page, needs_browser

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(driver, demo):
    return Page(driver, demo.url)


@pytest.fixture(autouse=True)
def start_here(page):
    page.here()


@pytest.fixture
def scene(tmp_path, service):
    """A file of the second example, half mirrored, so that it equals no example."""
    path = tmp_path / "scene of mine.jpg"
    Image.fromarray(np.concatenate([service.examples[1].pixels, service.examples[1].pixels[:, ::-1]], axis=1)).save(
        path, quality=90
    )
    return path


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_opens_with_an_example_and_loads_from_no_other_site(page, demo, driver):
    assert sorted(page.classes()) == sorted(demo.service.examples[0].words.split(", "))
    assert driver.title == "Segment anything you can name"
    assert "once · words" in page.text("times")
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 10
    assert all(url.startswith((demo.url, "data:", "blob:")) for url in urls)
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_every_control_has_a_name(page, driver):
    controls = driver.find_elements(By.CSS_SELECTOR, "button, input, textarea, [tabindex='0']")
    assert len(controls) > 12
    nameless = [each.get_attribute("outerHTML")[:120] for each in controls if not each.accessible_name]
    assert not nameless


def test_upload_then_other_words(page, demo, scene, monkeypatch):
    model, calls = demo.service._predictor.model, []
    propose = model.propose
    monkeypatch.setattr(model, "propose", lambda batch: calls.append(1) or propose(batch))
    page.choose(scene)
    page.wait_for_title("scene of mine.jpg")
    assert page.js("const c = document.querySelector('.san-colours'); return [c.width, c.height]") == [768, 384]
    page.segment("yellow square, dotted ground")
    before, times = page.color(0.05, 0.05), page.text("times")
    page.segment("yellow square, striped ground")
    assert page.color(0.05, 0.05) != before, "another ground, another colour"
    assert page.text("times").split(" · ")[0] == times.split(" · ")[0]
    assert len(calls) == 1, "the picture was encoded once"


def test_pointing_and_holding(page, demo):
    page.segment("red star, plain ground")  # so that the example's result can be distinguished from what is there
    page.js("document.querySelector('.san-examples button').click()")
    page.wait_for_title(demo.service.examples[0].title)
    page.wait(lambda: len(page.classes()) == 4, "the example's classes")
    result, *_ = demo.service.segment(demo.service.open_example(0), Words(demo.service.examples[0].words))
    for x, y in ((0.6, 0.36), (0.3, 0.2), (0.8, 0.7), (0.1, 0.9)):
        name = result.names[result.labels[int(y * 384), int(x * 384)]]
        page.point(x, y)
        page.wait(lambda name=name: page.text("tip") == name, f"the name {name}")
        assert page.text("readout").startswith(f"{name} · ")
        assert page.js("return document.querySelector('.san-here .san-name').firstChild.textContent") == name
    assert page.color(0.6, 0.36)[3] == 255
    page.point(0.6, 0.36)
    ActionChains(page.driver).click().perform()
    assert page.js("return document.querySelector('[aria-pressed=true] .san-name').textContent") == "green star"
    assert (page.color(0.6, 0.36)[3], page.color(0.1, 0.9)[3] < 60) == (255, True), "the others fade"
    page.one(".san-class[aria-pressed=true]").click()
    assert page.color(0.1, 0.9)[3] == 255
    page.segment("green star, plain ground")
    assert page.text("readout").startswith("Point at"), "what stood there was of another result"


def test_keyboard(page, demo):
    page.segment("red star, plain ground")  # so that the next result can be distinguished from what is there
    page.write("green star, plain ground")
    page.one("#san-words textarea").send_keys(Keys.ENTER)
    page.wait(lambda: sorted(page.classes()) == ["green star", "plain ground"], "Enter to segment")
    stage = page.one(".san-stage")
    stage.send_keys(Keys.ARROW_RIGHT)
    assert "pixel 192, 192" in page.text("readout"), "the first key puts the cross in the middle"
    stage.send_keys(*[Keys.ARROW_UP] * 5, *[Keys.ARROW_RIGHT] * 4)
    assert page.text("readout").startswith("green star · ")
    stage.send_keys(*[Keys.ARROW_DOWN] * 30)
    assert "pixel 232, 383" in page.text("readout"), "it stops at the border"
    stage.send_keys(Keys.ENTER)
    assert page.js("return document.querySelector('[aria-pressed=true] .san-name').textContent") == "plain ground"
    stage.send_keys(Keys.ESCAPE)
    assert not page.js("return document.querySelectorAll('[aria-pressed=true]').length")
    page.js("document.querySelector('.san-examples button').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: len(page.classes()) == 4, "the example chosen by key")


def test_opacity_is_instant(page):
    count = "return performance.getEntriesByType('resource').length"
    requests, slider = page.js(count), page.one(".san-opacity input")
    slider.send_keys(Keys.HOME)
    assert page.js("return document.querySelector('.san-colours').style.opacity") == "0"
    slider.send_keys(Keys.END)
    assert page.js("return document.querySelector('.san-colours').style.opacity") == "1"
    assert page.text("opacity").strip().endswith("100 %")
    slider.send_keys(*[Keys.ARROW_LEFT] * 40)
    assert page.js("return getComputedStyle(document.querySelector('.san-colours')).opacity") == "0.6"
    page.one(".san-switch input").click()
    assert page.js("return getComputedStyle(document.querySelector('.san-labels')).display") == "none"
    page.one(".san-switch input").click()
    assert page.js(count) == requests, "nothing was asked of the server"


def test_downloads(page, demo, scene, downloads):
    words = "black star, yellow square, cyan ring, dotted ground"
    page.choose(scene)
    page.wait_for_title("scene of mine.jpg")
    page.segment(words)
    session = demo.service._run(lambda: demo.service._encode(np.asarray(Image.open(scene)), "x"))
    result, *_ = demo.service.segment(session, Words(words))

    def fetched(kind, name):
        page.one(f".san-files [data-file={kind}]").click()
        file = Path(downloads) / name
        page.wait(lambda: file.is_file() and file.stat().st_size and not list(downloads.glob("*.crdownload")), name)
        return file

    labels = np.asarray(Image.open(fetched("labels", "scene_of_mine_labels.png")))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, result.labels)
    saved = json.loads(fetched("json", "scene_of_mine.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(result.to_dict()))
    overlay = np.asarray(Image.open(fetched("overlay", "scene_of_mine_overlay.png")).convert("RGB"))
    assert overlay.shape == (384, 768, 3)
    assert not np.array_equal(overlay, np.asarray(Image.open(scene)))


def test_label_set_context_and_none(page):
    page.js("document.querySelector('.san-examples button').click()")
    page.wait(lambda: len(page.classes()) == 4, "the example")
    page.write("green star")
    page.choose_label_set("shapes_36")
    page.wait(lambda: page.js("return document.querySelectorAll('.san-name em').length") > 0, "classes of the context")
    assert page.classes()[0] in NAMES
    assert "without a pixel" in page.text("absent")
    page.wait(lambda: page.js("return !!document.querySelector('#san-role')"), "the choice of its use")
    page.js("document.querySelectorAll('#san-role input')[1].click()")
    page.wait(lambda: not page.js("return document.querySelectorAll('.san-name em').length"), "them as words")
    page.choose_label_set("none")
    page.wait(lambda: page.classes() == ["green star"], "the word alone")
    page.one("#san-none input").click()
    page.wait(lambda: page.classes() == ["green star", "none of these"], "pixels without a word")
    page.one("#san-none input").click()
    page.wait(lambda: page.classes() == ["green star"], "every pixel named again")


def test_a_change_while_an_answer_is_under_way_counts(page, demo, monkeypatch):
    first, second = demo.service.examples[:2]
    page.segment("red star, plain ground")  # so that the example's result can be distinguished from what is there
    page.js("document.querySelectorAll('.san-examples button')[1].click()")
    page.wait(lambda: len(page.classes()) == len(second.words.split(",")), "the example")
    segment = demo.service.segment
    monkeypatch.setattr(demo.service, "segment", lambda *given: time.sleep(1) or segment(*given))
    page.write("green star")
    page.one("#san-segment").click()
    page.one("#san-none input").click()
    page.wait(lambda: "none of these" in page.classes(), "the answer to both")
    page.one("#san-none input").click()
    for index in (2, 0):
        page.js("document.querySelectorAll('.san-examples button')[arguments[0]].click()", index)
        time.sleep(0.3)  # as quick as a hand
    page.wait_for_title(demo.service.examples[2].title)
    page.wait_for_title(first.title)
    wanted = sorted(each.strip() for each in first.words.split(","))
    page.wait(lambda: sorted(page.classes()) == wanted, "the last example's classes")
    assert page.one("#san-words textarea").get_attribute("value") == first.words


def test_bad_input_is_a_message(page, demo, tmp_path, scene):
    page.segment("red star, plain ground")  # so that the example's result can be distinguished from what is there
    page.js("document.querySelector('.san-examples button').click()")
    page.wait(lambda: len(page.classes()) == 4, "the example")
    classes = page.classes()
    for words, message in (("", "There are no words"), ("star, Star", "twice"), ("star|", "blank synonym")):
        page.write(words)
        page.one("#san-segment").click()
        page.wait_for_message(message)
        assert page.classes() == classes, "what was there stays"
    page.segment("green star, plain ground")
    assert page.text("message") == "", "the message goes"
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for name, content, message in (
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG, a drawing without pixels"),
        ("cut.png", scene.read_bytes()[:5000], "The picture cannot be read (image file is truncated"),
        ("heavy.tif", encoded(Image.fromarray(noise), "TIFF"), "The file has 1.1 MB, the limit here is 0.3 MB"),
        (
            "wide.tif",
            encoded(Image.new("1", (2_000, 1000)), "TIFF"),
            "The picture is 2000x1000 (width x height), 2 million pixels, but at most 0.4 million",
        ),
        ("words.txt", b"hello", "The picture cannot be read (it is not PNG, JPEG"),
    ):
        (tmp_path / name).write_bytes(content)
        page.choose(tmp_path / name)
        page.wait_for_message(message)
        assert page.text("upload").startswith(f"{name} was not taken. "), "and it does not look as if it were"
        assert "Traceback" not in page.one("body").text
    page.write("star|")
    page.choose(scene)
    page.wait_for_title("scene of mine.jpg")
    assert "blank synonym" in page.text("message"), "the picture is shown, the words can be corrected"
    page.segment("green star, black star")
    assert page.text("message") == ""


def test_paste(page, tmp_path):
    page.write("red star")
    page.js(
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));"
        "const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));"
        "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
        base64.b64encode(encoded(Image.new("RGB", (50, 40), "red"))).decode(),
    )
    page.wait_for_title("pasted.png")
    page.wait(lambda: page.classes() == ["red star"], "its classes")


def test_two_visitors_at_once(page, demo, driver, scene):
    page.choose(scene)
    page.wait_for_title("scene of mine.jpg")
    driver.switch_to.new_window("tab")
    other = Page(driver, demo.url)
    try:
        other.segment("purple ring, plain ground")
        page.here().segment("cyan ring, dotted ground")
        assert page.js("return document.querySelector('.san-colours').width") == 768
        other.here()
        assert sorted(other.classes()) == ["plain ground", "purple ring"]
        other.segment("green star")
        assert other.js("return document.querySelector('.san-colours').width") == 384
        assert "scene of mine" not in other.one("body").get_attribute("innerHTML")
    finally:
        other.here()
        driver.close()
        page.here()
    assert sorted(page.classes()) == ["cyan ring", "dotted ground"]


def test_a_narrow_window(page, driver):
    size = driver.get_window_size()
    try:
        driver.set_window_size(500, 900)
        assert page.js("return document.documentElement.scrollWidth <= window.innerWidth")
        stage = page.one(".san-stage").rect
        assert stage["width"] > 300
        assert page.one("#san-segment").rect["y"] < stage["y"], "the result stands below what was asked"
    finally:
        driver.set_window_size(size["width"], size["height"])
