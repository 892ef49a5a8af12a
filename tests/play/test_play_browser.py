# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: type, draw and compare, at two widths. `--play-screenshot docs/play.png` keeps its picture.

It needs a chromium with its chromedriver on the path and `selenium`, and is skipped without them.
"""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("gradio")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from nag_kernels.play.settings import query_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="a browser: no chromium with chromedriver on the path"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = (1280, 420)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def widen(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait(browser, what):
    return WebDriverWait(browser, 30, poll_frequency=0.1).until(what)


def shown(browser, pictures_in):
    """Both sets of pictures that the page shows, or none while it draws."""
    found = browser.find_elements(By.CSS_SELECTOR, "#pictures .pair")
    return pictures_in(found[0].get_attribute("outerHTML")) if found else {}


def visit(browser, server, query=""):
    browser.get("about:blank")
    browser.get(f"{server}/{query}")
    wait(browser, lambda _: "seed=" in browser.current_url and browser.find_elements(By.CSS_SELECTOR, "#pictures img"))


def field(browser, label):
    """The input with this label."""
    return browser.find_element(
        By.XPATH, f"//label[.//span[normalize-space()='{label}']]//*[self::textarea or self::input]"
    )


def type_into(browser, label, text):
    box = field(browser, label)
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text)


def open_tab(browser, name):
    wait(browser, lambda _: browser.find_elements(By.XPATH, f"//button[@role='tab'][normalize-space()='{name}']"))
    browser.find_element(By.XPATH, f"//button[@role='tab'][normalize-space()='{name}']").click()


def address(browser, wanted):
    """Waits until the settings are in the page's address."""
    wait(browser, lambda _: urlsplit(browser.current_url).query == query_of(wanted)[1:])


def test_type_draw_and_compare(browser, server, model, direct, reading):
    pixels, pictures_in = reading

    def agrees(settings):
        address(browser, settings)
        found = shown(browser, pictures_in)
        assert (pixels(found["without"]), pixels(found["steered"])) == direct(settings)

    widen(browser, 1280)
    visit(browser, server)
    agrees(model.first)
    asked = replace(model.first, prompt="a star", negative="on pink")
    type_into(browser, "Prompt", asked.prompt)
    type_into(browser, "Negative prompt", asked.negative)
    browser.find_element(By.ID, "draw").click()
    agrees(asked)
    browser.find_element(
        By.XPATH, "//label[normalize-space()='nasa']"
    ).click()  # and its usual settings; draws by itself
    asked = replace(asked, rule="nasa", **model.usual("nasa"))
    agrees(asked)
    assert not browser.find_elements(By.XPATH, "//span[contains(., 'nag_tau')]")
    type_into(browser, "Negative prompt", "fog")
    browser.find_element(By.ID, "draw").click()
    wait(browser, lambda _: "never learned: ['fog']" in browser.find_element(By.TAG_NAME, "body").text)
    assert "Traceback" not in browser.find_element(By.TAG_NAME, "body").text


def test_a_link_opens_with_its_settings(browser, server, model, direct, reading):
    pixels, pictures_in = reading
    settings = replace(
        model.first, prompt="a small star", rule="vsf", **model.usual("vsf"), seed=77, pictures=2, end=0.5
    )
    visit(browser, server, query_of(settings))
    address(browser, settings)
    assert field(browser, "Prompt").get_property("value") == settings.prompt
    assert field(browser, "Seed").get_property("value") == "77"
    found = shown(browser, pictures_in)
    assert (pixels(found["without"]), pixels(found["steered"])) == direct(settings)
    open_tab(browser, "Code")
    link = wait(browser, lambda _: browser.find_element(By.CSS_SELECTOR, "#link textarea, #link input")).get_property(
        "value"
    )
    assert link == f"{server}/{query_of(settings)}"
    assert 'rule="vsf"' in browser.find_element(By.ID, "code").text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tabs_fit_the_page(browser, server, width, pytestconfig):
    widen(browser, width)
    visit(browser, server)
    where = pytestconfig.getoption("--play-screenshot")
    for name, button, result in (
        ("Pictures", None, "#pictures img"), ("Sweep", "sweep", "#strip img"), ("Layers", "measure", "#measured img"),
        ("Code", None, "#code"),
    ):  # fmt: skip
        open_tab(browser, name)
        if button:
            wait(browser, lambda _, button=button: browser.find_element(By.ID, button).is_displayed())
            browser.find_element(By.ID, button).click()
        wait(browser, lambda _, result=result: browser.find_elements(By.CSS_SELECTOR, result))
        size = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert size[0] <= size[1], name
        outside = browser.execute_script(
            "return [...document.querySelectorAll('#main button, #main input, #main textarea, .pair img, .strip img')]"
            ".filter(x => x.offsetParent && !x.closest('.measured') && x.getBoundingClientRect().right > innerWidth + 1)"
            ".map(x => x.outerHTML.slice(0, 80))"
        )
        assert outside == [], name
        if where and name == "Pictures" and width == 1280:
            clip = {"x": 0, "y": 0, "width": width, "height": 860, "scale": 1}
            taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            Path(where).write_bytes(base64.b64decode(taken["data"]))


def asked_by_the_browser(message):
    """Whether a page of the browser itself asked: its first tab is one, and may still be loading when a test begins."""
    return urlsplit(message["params"].get("documentURL", "")).scheme.startswith("chrome")


def test_only_this_machine_is_asked(browser, server):
    """All that the page's tab asked for."""
    browser.get_log("performance")
    visit(browser, server)
    for name in ("Sweep", "Layers", "Code"):
        open_tab(browser, name)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [x for x in messages if x["method"] == "Network.requestWillBeSent" and not asked_by_the_browser(x)]
    asked = [x["params"]["request"]["url"] for x in requests]
    sockets = [x["params"]["url"] for x in messages if x["method"] == "Network.webSocketCreated"]
    assert len(asked) > 10
    here = urlsplit(server).netloc
    outside = [
        x[:100] for x in asked + sockets if urlsplit(x).scheme not in ("data", "blob") and urlsplit(x).netloc != here
    ]
    assert outside == []
    errors = [x["message"] for x in browser.get_log("browser") if x["level"] == "SEVERE"]
    assert errors == []
