"""serve.html in a real browser, with a server of its own: talk, compare, rank.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium; skipped without.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from minivlm.preferences.rankings import load_rankings

ROOT = Path(__file__).parents[2]
pytest.importorskip("starlette", reason="serve.py needs pip install -e '.[web]'")
selenium = pytest.importorskip("selenium", reason="no selenium to drive a browser")
if not shutil.which("chromedriver"):
    pytest.skip("no chromedriver to drive a browser", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from results.serving import Server  # noqa: E402


@pytest.fixture
def server(runs, folder, tmp_path, monkeypatch, request):
    """A server with two chatbots of the tests; its parameter is the longest answer."""
    monkeypatch.undo()  # the block of the network, for this test alone
    data = tmp_path / "data"
    data.mkdir()
    for path in folder.iterdir():
        (data / path.name).symlink_to(path)
    server = Server(
        "--runs", f"{runs}/sft,{runs}/dpo", "--data", str(data), "--threads", "1", "--k", "3",
        "--max_new_tokens", str(getattr(request, "param", 16)),
    )
    yield server
    server.kill()


@pytest.fixture
def browser():
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def text(browser, css: str) -> list[str]:
    """The texts of all elements that a selector finds."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())"
    return browser.execute_script(script, css)


def words(answer: str) -> str:
    """The letters of a text: a browser may show other characters in its own way."""
    return "".join(filter(str.isalpha, answer))


def until(browser, what) -> None:
    """Wait until something is true."""
    WebDriverWait(browser, 60, 0.05).until(lambda _: what())


def by_id(browser, name: str):
    """An element of the page."""
    return browser.find_element(By.ID, name)


def asked(browser, question: str) -> None:
    """Ask in the view Talk, and wait for the end of the answer."""
    n = len(text(browser, ".turn"))
    by_id(browser, "question").send_keys(question + Keys.ENTER)
    until(browser, lambda: len(text(browser, ".turn")) == n + 2
          and by_id(browser, "send").is_displayed())


def complaints(browser) -> list[dict]:
    """What the browser's console says, but of requests that are refused or find no server."""
    meant = ("status of 4", "ERR_CONNECTION_REFUSED")
    return [entry for entry in browser.get_log("browser")
            if not any(words in entry["message"] for words in meant)]


def test_a_conversation_of_three_turns_about_a_scene_and_about_a_file(server, browser, tmp_path):
    """Catches a page that its own policy stops, turns that are lost, a picture that is not sent,
    markup in an answer or question that the browser obeys, an error that ends the page.
    """
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#suggestions button")) >= 2)
    for question in ("Describe the picture.", "<b>Is</b> it day?", "Is there a cat?"):
        asked(browser, question)
    turns = text(browser, ".turn")
    assert len(turns) == 6 and turns[2] == "<b>Is</b> it day?"
    assert all(turns) and not browser.find_elements(By.CSS_SELECTOR, "#log b")

    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    by_id(browser, "file").send_keys(str(tmp_path / "broken.png"))
    until(browser, lambda: "no readable picture" in by_id(browser, "error").text)
    assert len(text(browser, ".turn")) == 6, "the conversation is still there"
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    by_id(browser, "file").send_keys(str(tmp_path / "red.png"))
    until(browser, lambda: "Your picture" in by_id(browser, "about").text)
    assert text(browser, ".turn") == [], "another picture begins another conversation"
    asked(browser, "What is this?")
    assert by_id(browser, "error").text == "" and complaints(browser) == []


@pytest.mark.parametrize("server", [120], indirect=True)
def test_an_answer_can_be_stopped_and_the_conversation_goes_on(server, browser):
    """Catches a button that stops nothing, or everything."""
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#suggestions button")) >= 2)
    assert text(browser, "#run option") == ["sft", "dpo"]
    by_id(browser, "question").send_keys("Describe the picture." + Keys.ENTER)
    until(browser, lambda: by_id(browser, "stop").is_displayed())
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    until(browser, lambda: by_id(browser, "send").is_displayed())
    asked(browser, "And now?")
    assert len(text(browser, ".turn")) == 4 and all(text(browser, ".turn"))


def test_two_chatbots_answer_side_by_side(server, browser):
    """Catches an answer in the other's column, and a chatbot asked that was not chosen."""
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#who label")) == 2)
    by_id(browser, "tab-compare").click()
    by_id(browser, "asked").send_keys("Describe the picture." + Keys.ENTER)
    until(browser, lambda: len(text(browser, "#answers h2")) == 2
          and "…" not in text(browser, "#answers > div > div"))
    assert text(browser, "#answers h2") == ["sft", "dpo"]
    browser.find_elements(By.CSS_SELECTOR, "#who input")[0].click()
    by_id(browser, "asked").send_keys(Keys.ENTER)
    until(browser, lambda: text(browser, "#answers h2") == ["dpo"])
    assert complaints(browser) == []


def test_twenty_rankings_by_keys_with_an_undo_and_a_kill_can_be_trained_from(
    server, browser, tmp_path
):
    """Catches a ranking that is lost, kept twice, or kept in another order than it was shown."""
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#who label")) == 2)
    by_id(browser, "tab-rank").click()
    by_id(browser, "person").send_keys("Ann" + Keys.ENTER)
    wanted = []  # words of the answers, ranks

    def press(key: str) -> None:
        browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def ranked(n: int) -> bool:
        return text(browser, "#progress strong") == [f"{n} ranking" + "s" * (n != 1)]

    def answers() -> list[str]:
        return [words(answer) for answer in text(browser, ".card > span:nth-child(2)")]

    def rank(n: int) -> None:
        """Rank what is shown, from the last to the first, of three the last two as equals."""
        until(browser, lambda: len(answers()) > 1)
        shown = answers()
        for key in range(len(shown), 0, -1):
            press(str(key))
        if len(shown) > 2:
            press("=")
        press(Keys.ENTER)
        until(browser, lambda: ranked(n) and set(answers()) != set(shown))
        wanted.append((shown, [2, 2, 1] if len(shown) == 3 else [2, 1]))

    for n in range(1, 11):
        rank(n)
    press("u")
    last, _ = wanted.pop()
    until(browser, lambda: ranked(9) and answers() == last)
    rank(10)

    server.kill()
    press("1")
    by_id(browser, "save").click()
    until(browser, lambda: "does not answer" in by_id(browser, "error").text)
    server.start()
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#who label")) == 2)
    by_id(browser, "tab-rank").click()
    by_id(browser, "person").send_keys("Ann" + Keys.ENTER)
    until(browser, lambda: by_id(browser, "task").is_displayed())
    for n in range(11, 21):
        rank(n)

    data = tmp_path / "data"
    kept = load_rankings(data, "people")
    assert len(kept) == 20
    assert [(list(map(words, r["responses"])), r["ranking"]) for r in kept] == wanted
    by_id(browser, "done").click()
    until(browser, lambda: "Ann and the scene" in text(browser, "#agreement")[0]
          or "Nothing to compare" in text(browser, "#agreement")[0])
    assert complaints(browser) == []

    command = ["data/preferences.py", "--rater", "file", "--ranked", str(data / "people.jsonl"),
               "--data", str(data), "--out", str(data / "mine.jsonl"), "--n_val", "4"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    assert len(load_rankings(data, "mine")) + len(load_rankings(data, "mine_val")) == 20


def test_only_the_order_that_the_person_made_is_kept(server, browser, tmp_path):
    """Catches the random order shown that counts as a judgment, Enter that presses the button
    clicked before, an answer that stays equal to another one than it was called.
    """
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#who label")) == 2)
    by_id(browser, "tab-rank").click()
    by_id(browser, "person").send_keys("Ann" + Keys.ENTER)
    until(browser, lambda: len(text(browser, ".card")) > 1)

    def press(keys: str) -> None:
        browser.find_element(By.TAG_NAME, "body").send_keys(keys)

    assert not by_id(browser, "save").is_enabled()
    press(Keys.ENTER)
    question = text(browser, "#what"), text(browser, ".card")
    by_id(browser, "skip").click()
    until(browser, lambda: (text(browser, "#what"), text(browser, ".card")) != question)
    n = len(text(browser, ".card"))
    press("2")  # the best; nothing is said of the others
    press(Keys.ENTER)
    until(browser, lambda: text(browser, "#progress strong") == ["1 ranking"])
    until(browser, lambda: not by_id(browser, "save").is_enabled())
    until(browser, lambda: len(text(browser, ".card")) > 2)
    for key in ("1", "2", "="):
        press(key)
    browser.find_elements(By.CSS_SELECTOR, ".card button:nth-child(2)")[2].click()  # between both
    press(Keys.ENTER)
    until(browser, lambda: text(browser, "#progress strong") == ["2 rankings"])
    first, second = [r["ranking"] for r in load_rankings(tmp_path / "data", "people")]
    assert first == [2, 1, 2][:n] and second == [1, 3, 2]


def test_answers_are_ordered_by_dragging_and_by_buttons(server, browser):
    """Catches a card that jumps back, and buttons that move another card."""
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#who label")) == 2)
    by_id(browser, "tab-rank").click()
    by_id(browser, "person").send_keys("Ann" + Keys.ENTER)
    until(browser, lambda: len(text(browser, ".card")) > 1)
    keys = text(browser, ".key")
    cards = browser.find_elements(By.CSS_SELECTOR, ".card > span:nth-child(2)")
    above = cards[0].location["y"] - cards[-1].location["y"] - cards[-1].size["height"] // 2
    webdriver.ActionChains(browser).click_and_hold(cards[-1]).move_by_offset(0, above // 2) \
        .move_by_offset(0, above - above // 2).release().perform()
    dragged = [keys[-1], *keys[:-1]]
    assert text(browser, ".key") == dragged
    browser.find_elements(By.CSS_SELECTOR, ".card button:nth-child(3)")[0].click()  # worse
    assert text(browser, ".key") == [dragged[1], dragged[0], *dragged[2:]]
    browser.find_elements(By.CSS_SELECTOR, ".card button:nth-child(1)")[1].click()  # as good
    assert "tie" in browser.find_elements(By.CSS_SELECTOR, ".card")[1].get_attribute("class")


def test_the_page_fits_a_phone(server, browser):
    """Catches a page that must be scrolled sideways."""
    browser.set_window_size(390, 844)
    browser.get(server.address)
    until(browser, lambda: len(text(browser, "#suggestions button")) >= 2)
    for name in ("talk", "compare", "rank"):
        by_id(browser, f"tab-{name}").click()
        width, wide = browser.execute_script(
            "return [innerWidth, document.documentElement.scrollWidth]")
        assert wide <= width
