"""Photograph the page of serve.py: docs/page_talk.png, page_compare.png, page_rank.png and
page_phone.png, a phone in the dark.

    python results/screenshots.py

Needs Chromium with its driver, pip install selenium, and a data folder for the view Rank.
"""

import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from serving import Server

DOCS = Path(__file__).parents[1] / "docs"
SCENE = 0.0000042  # what the page takes for a random number: chooses its scene
RUNS = "runs/sft,runs/ppo,runs/dpo"


def browser(width: int, height: int, dark: bool = False) -> webdriver.Chrome:
    """Chromium without a window, which always draws the same scene."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
    scheme = "dark" if dark else "light"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {
        "source": f"Math.random = () => {SCENE}"})
    return driver


def typed(driver: webdriver.Chrome, name: str, text: str) -> None:
    """Type a line into a field of the page, and wait for what it brings."""
    driver.find_element(By.ID, name).send_keys(text + Keys.ENTER)
    time.sleep(3)


def main() -> None:
    """Take the four pictures."""
    server = Server("--runs", RUNS, "--rankings", "people_photographed")
    try:
        driver = browser(1080, 720)
        driver.get(server.address)
        time.sleep(2)
        for question in ("Describe the picture in detail.", "Is it day or night?",
                         "What is unusual here, and why?"):
            typed(driver, "question", question)
        driver.save_screenshot(str(DOCS / "page_talk.png"))
        driver.find_element(By.ID, "tab-compare").click()
        typed(driver, "asked", "Describe the picture in detail.")
        driver.save_screenshot(str(DOCS / "page_compare.png"))
        driver.find_element(By.ID, "tab-rank").click()
        typed(driver, "person", "Ann")
        driver.find_element(By.TAG_NAME, "body").send_keys("21=")
        time.sleep(1)
        driver.save_screenshot(str(DOCS / "page_rank.png"))
        driver.quit()
        driver = browser(390, 780, dark=True)
        driver.get(server.address)
        time.sleep(2)
        typed(driver, "question", "Describe the picture in detail.")
        driver.save_screenshot(str(DOCS / "page_phone.png"))
        driver.quit()
    finally:
        server.kill()


if __name__ == "__main__":
    main()
