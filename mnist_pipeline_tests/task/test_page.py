"""The pages in a real Chromium: draw, see, correct, review; with mouse, finger and keys, in every size and theme."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_feedback import files
from mnist_pipeline_tests.serve.test_predict import TEST
from mnist_pipeline_tests.task.drawing import ONE, SEVEN, draw, drawn, encode

SIZES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1100, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1100, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


class Visit:
    """A page that was opened, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wait_for(self, selector: str, text: str) -> None:
        self.page.locator(selector).filter(has_text=text).wait_for(timeout=10_000)

    def drawn(self) -> str:
        return self.page.locator("#pad").evaluate("c => c.toDataURL()")

    def pixels(self, selector: str) -> np.ndarray:
        """uint8 (height, width, 4)."""
        script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        values = np.array(self.page.locator(selector).evaluate(script), np.uint8)
        side = int(np.sqrt(len(values) // 4))
        return values.reshape(side, side, 4)


@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_is_seen_right(service, browser, deployed, size):
    with Visit(browser, service.url, **SIZES[size]) as visit:
        visit.wait_for("#model", f"{deployed}, 90.00 % right on test images")
        draw(visit.page, SEVEN)
        visit.wait_for("#label", "7")
        visit.wait_for("#status", "7")
        assert visit.page.locator(".bars li.best").inner_text().startswith("7")
        shares = [float(text.removesuffix(" %")) for text in visit.page.locator(".bars .share").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=1)
        prepared = visit.pixels("#prepared")
        assert prepared.shape == (28, 28, 4)
        assert prepared[..., 0].max() == 255
        ink = visit.page.locator("#pad").evaluate("c => c.getContext('2d').strokeStyle")
        assert ink == ("#ffffff" if size == "dark" else "#000000")
        overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not visit.page.evaluate(overflow)
        assert visit.problems == []
        assert all(url.startswith((service.url, "data:")) for url in visit.requests)


def test_the_bars_live_while_one_draws(service, browser):
    with Visit(browser, service.url) as visit:
        draw(visit.page, ONE, lift=False)
        visit.wait_for("#label", "1")
        visit.page.mouse.up()


def test_a_correction_is_stored_once_and_can_be_taken_back(service, browser, labelled):
    with Visit(browser, service.url) as visit:
        assert visit.page.get_by_role("button", name="It is a 1").is_disabled()
        draw(visit.page, SEVEN)
        visit.wait_for("#label", "7")
        button = visit.page.get_by_role("button", name="It is a 1")
        button.dblclick()
        visit.wait_for("#stored", "Thank you: stored as a 1.")
        visit.wait_for("#waiting", "1 correction waits for the next training.")
        [name] = files(labelled)
        assert name.startswith("1/")
        stored = np.asarray(Image.open(labelled / name))
        assert np.array_equal(stored, visit.pixels("#prepared")[..., 0])
        visit.page.get_by_role("button", name="Take it back").click()
        visit.wait_for("#waiting", "0 corrections wait")
        assert files(labelled) == []


def test_undo_and_clear(service, browser):
    with Visit(browser, service.url) as visit:
        assert visit.page.get_by_role("button", name="Undo").is_disabled()
        blank = visit.drawn()
        draw(visit.page, ONE)
        visit.wait_for("#label", "1")
        before = visit.drawn()
        draw(visit.page, [[(0.1, 0.9), (0.9, 0.9)]])
        assert visit.drawn() != before
        visit.page.get_by_role("button", name="Undo").click()
        assert visit.drawn() == before
        visit.wait_for("#label", "1")
        visit.page.get_by_role("button", name="Clear").click()
        visit.wait_for("#label", "?")
        assert visit.drawn() == blank
        assert visit.page.get_by_role("button", name="It is a 1").is_disabled()


def test_clearing_while_a_stroke_is_drawn_ends_it(service, browser):
    with Visit(browser, service.url) as visit:
        blank = visit.drawn()
        draw(visit.page, ONE, lift=False)
        visit.page.keyboard.press("Escape")
        visit.page.mouse.move(10, 10)
        visit.page.mouse.up()
        assert visit.drawn() == blank
        assert visit.page.evaluate("document.activeElement.id") == "pad"
        draw(visit.page, SEVEN)
        visit.wait_for("#label", "7")
        assert visit.problems == []


def test_nothing_can_be_corrected_before_the_answer_to_the_latest_change(service, browser):
    with Visit(browser, service.url) as visit:
        draw(visit.page, SEVEN)
        button = visit.page.get_by_role("button", name="It is a 7")
        visit.page.locator("#correction:enabled").wait_for(timeout=10_000)
        visit.page.route("**/predict*", lambda route: None)  # an injected fault: no answer comes
        draw(visit.page, ONE)
        assert button.is_disabled()


def test_by_finger(service, browser):
    with Visit(browser, service.url, **SIZES["phone"]) as visit:
        box = visit.page.locator("#pad").bounding_box()
        devtools = visit.context.new_cdp_session(visit.page)
        points = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] * y / 20} for y in range(4, 17)]
        for kind, touched in [("touchStart", points[:1]), *(("touchMove", [p]) for p in points[1:]), ("touchEnd", [])]:
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})
        visit.wait_for("#label", "1")
        assert visit.page.evaluate("scrollY") == 0


def test_by_keyboard_alone(service, browser, labelled):
    with Visit(browser, service.url) as visit:
        page = visit.page
        while page.evaluate("document.activeElement.id") != "pad":
            page.keyboard.press("Tab")
        for key in ["ArrowUp"] * 9 + ["Space"] + ["ArrowDown"] * 18 + ["Space"]:
            page.keyboard.press(key)
        visit.wait_for("#label", "1")
        assert "pen" in page.locator("#pad-help").inner_text()
        while page.evaluate("document.activeElement.textContent") != "4":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        visit.wait_for("#stored", "stored as a 4")
        assert [name[0] for name in files(labelled)] == ["4"]
        page.locator("#pad").focus()
        page.keyboard.press("Control+z")
        visit.wait_for("#label", "?")


def test_an_image_file(service, browser, tmp_path):
    good, bad = tmp_path / "seven.png", tmp_path / "bad.png"
    good.write_bytes(encode(drawn()))
    bad.write_text("no image")
    with Visit(browser, service.url) as visit:
        visit.page.locator("#file").set_input_files(good)
        visit.wait_for("#label", "7")
        visit.page.locator("#file").set_input_files(bad)
        visit.wait_for("#status", "not an image in a known format")
        visit.page.locator("#file").set_input_files(good)
        visit.wait_for("#label", "7")
        drop = """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "one.png", { type: "image/png" }));
            document.getElementById("pad").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }"""
        one = TEST.images[np.flatnonzero(TEST.labels == 1)[0]]
        visit.page.evaluate(drop, list(encode(Image.fromarray(one))))
        visit.wait_for("#label", "1")


def test_what_goes_wrong_is_said(store, browser):
    with Service(store) as service, Visit(browser, service.url) as visit:
        visit.wait_for("#model", "no model is served: none is deployed yet")
        draw(visit.page, ONE)
        visit.wait_for("#status", "no model is served: none is deployed yet")
        assert visit.page.locator("#correction").is_hidden()  # and corrections are off
        service.server.should_exit = True
        service.thread.join()
        draw(visit.page, ONE)
        visit.wait_for("#status", "The service cannot be reached.")


def test_the_token_is_asked_for_until_it_is_right(store, deployed, browser):
    with Service(store, token="letmein") as service, Visit(browser, service.url) as visit:
        for attempt in ("…", "wrong"):  # the first cannot be in a header, and is not taken
            visit.page.keyboard.press("Escape")
            visit.page.keyboard.press("Escape")
            visit.page.get_by_label("SERVE_TOKEN").fill(attempt)
            visit.page.get_by_role("button", name="Use it").click()
        visit.page.get_by_text("That token was not accepted.").wait_for(timeout=10_000)
        visit.page.get_by_label("SERVE_TOKEN").fill("letmein")
        visit.page.get_by_role("button", name="Use it").click()
        visit.wait_for("#model", deployed)
        draw(visit.page, ONE)
        visit.wait_for("#label", "1")


def test_the_document_is_shown_offline(service, browser):
    with Visit(browser, f"{service.url}/docs") as visit:
        visit.page.get_by_text("/predict", exact=True).first.click()
        visit.page.get_by_role("button", name="Try it out").click()
        visit.page.get_by_role("button", name="Execute").click()
        visit.page.get_by_text('"confidence"').first.wait_for(timeout=10_000)
        assert all(url.startswith((service.url, "data:")) for url in visit.requests)
