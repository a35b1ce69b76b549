"""A real browser, without a screen and without a network beyond this machine; imported where selenium is installed."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium and chromedriver here (Debian: apt install chromium chromium-driver)"
)
PATIENCE = 60  # seconds, for a busy machine; nothing is waited for longer than it takes


@contextlib.contextmanager
def browser(downloads):
    """Chromium, driven."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",  # where tests run as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # requests to the internet fail
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A visitor in one browser tab."""

    def __init__(self, driver, url):
        self.driver, self.handle = driver, driver.current_window_handle
        driver.get(url)
        self.wait(self.classes, "the first example")

    def here(self):
        self.driver.switch_to.window(self.handle)
        return self

    def wait(self, condition, what):
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition(), f"waited in vain for {what}")

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def classes(self):
        """Names in the legend."""
        return self.js("return [...document.querySelectorAll('.san-name')].map(e => e.firstChild.textContent)")

    def text(self, name):
        return self.js("return document.querySelector('.san-' + arguments[0]).textContent", name)

    def write(self, words):
        box = self.one("#san-words textarea")

        def written():  # an answer that arrives between the keys undoes the selection
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(words or Keys.DELETE)
            return box.get_attribute("value") == words

        self.wait(written, f"the box to hold {words!r}")

    def segment(self, words):
        """Writes words, presses the button, and waits for the legend to show just these."""
        self.write(words)
        self.one("#san-segment").click()
        wanted = sorted(each.strip() for each in words.split(","))
        self.wait(lambda: sorted(self.classes()) == wanted, f"the classes {wanted}")

    def choose(self, path):
        self.one(".san-drop input").send_keys(str(path))

    def choose_label_set(self, name):
        self.one("#san-label-set input").click()
        option = f"//*[@role='option'][normalize-space()='{name}' or @aria-label='{name}']"
        self.wait(lambda: self.driver.find_elements(By.XPATH, option), f"the option {name}")
        self.driver.find_element(By.XPATH, option).click()

    def wait_for_message(self, part):
        self.wait(lambda: part in self.text("message") + self.text("upload"), f"the message {part!r}")

    def wait_for_title(self, title):
        self.wait(lambda: self.one(".san-picture").get_attribute("alt") == title, f"the picture {title}")

    def color(self, x, y):
        """Red, green, blue, alpha painted at a place, in parts of the picture."""
        return self.js(
            "const c = document.querySelector('.san-colours');"
            "return [...c.getContext('2d').getImageData("
            "arguments[0] * c.width, arguments[1] * c.height, 1, 1).data]",
            x,
            y,
        )

    def point(self, x, y):
        """Moves the mouse to a place, in parts of the picture."""
        stage = self.one(".san-stage")
        self.js("arguments[0].scrollIntoView({block: 'center'})", stage)
        across, down = ((x - 0.5) * stage.size["width"], (y - 0.5) * stage.size["height"])
        ActionChains(self.driver, duration=0).move_to_element_with_offset(stage, int(across), int(down)).perform()
