"""The page in a real browser: it talks, stops, looks inside, compares, and asks nobody but its own server."""

import json
import re
import shutil
import time
from contextlib import contextmanager

import pytest
import torch
from web_server import KEY, Bytes, made_loaded, made_model, running

from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.sampling import Sampling
from minillama.web.inspection import inspect
from minillama.web.protocol import Loaded
from minillama.web.web_recording import record

pytestmark = pytest.mark.long
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
TOKENS = ".answers .token[role=button]"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser of the system: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, errors=0, **options):
    """The page at an address; afterwards nothing was asked of another machine, and so many errors were told."""
    options = {"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options}
    page = browser.new_page(**options)
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert len(told) == errors, told
    assert all(url.startswith((address.split("#")[0], "blob:")) for url in asked), asked


def wait(page, word="ready"):
    page.wait_for_selector(f"#status:has-text('{word}')", timeout=30_000)


def tuned():
    model = made_model()
    torch.manual_seed(1)
    add_lora(model, LoRAConfig(rank=2, alpha=8.0))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B)
    return Loaded("tuned", model, Bytes(), "question_answer", Sampling(0.8), 24)


def said(page, text="Hi"):
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#retry:not([disabled])", timeout=30_000)
    return page.locator(TOKENS)


def test_a_reader_talks_and_looks_inside(browser):
    loaded = tuned()
    with running(loaded) as port, opened(browser, f"http://127.0.0.1:{port}/#{KEY}") as page:
        wait(page)
        tokens = said(page)
        assert tokens.count() > 3
        tokens.nth(2).click()
        page.wait_for_selector(".heads")
        assert page.locator(".heads button").count() == 3 * 4
        assert page.locator("#look table").last.locator("tbody tr").count() == 3 + 1
        page.locator("#top_k").fill("3")
        assert page.locator("#filtered tbody tr:not(.cut)").count() == 3
        with page.expect_download() as download:
            page.click("#export")
        data = json.loads(download.value.path().read_text(encoding="utf-8"))
        answer = data["turns"][0]["answers"][0]
        ids = [token["id"] for token in [*answer["prompt"], *answer["tokens"][:2]]]
        first = inspect(loaded.model, ids)[1][-1].topk(3).indices.tolist()
        shown = page.locator("#filtered tbody td.piece").all_inner_texts()[:3]
        assert [text.strip() for text in shown] == [visible(Bytes().id_to_piece(index)) for index in first]


def visible(text):
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: {"\n": "⏎", "\t": "⇥"}.get(found[0], f"\\u{ord(found[0]):04x}"),
                  text).strip() if text != "" else "<258>"


def test_by_keys_alone_another_token_is_chosen_and_followed(browser):
    with running(tuned()) as port, opened(browser, f"http://127.0.0.1:{port}/#{KEY}") as page:
        wait(page)
        tokens = said(page)
        tokens.first.focus()
        page.keyboard.press("ArrowRight")
        before = [tokens.nth(0).inner_text(), tokens.nth(1).inner_text()]
        rival = page.locator("#token .choose").nth(4)
        wanted = rival.get_attribute("aria-label").removeprefix("say this: ")
        rival.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#retry:not([disabled])", timeout=30_000)
        assert tokens.nth(0).inner_text() == before[0] and tokens.nth(1).inner_text().strip() == wanted.strip()


def test_an_adapter_is_compared_with_none_of_it(browser):
    with running(tuned()) as port, opened(browser, f"http://127.0.0.1:{port}/#{KEY}") as page:
        wait(page)
        page.check("#side")
        said(page)
        assert page.locator(".answers .said").count() == 2
        page.locator(TOKENS).nth(1).focus()
        assert "the other model's probability" in page.locator("#token").inner_text()
        page.locator("#adapter_scale").fill("0")
        said(page, "Again")
        ours, theirs = (page.locator(".answers").nth(1).locator(".tokens[role=group]").nth(n).inner_text()
                        for n in (0, 1))
        assert ours == theirs


def test_an_answer_is_stopped_and_the_page_outlives_its_server(browser):
    slow = made_loaded(1, "slow")
    inner = slow.model.logits
    slow.model.logits = lambda hidden_BTD: (time.sleep(0.05), inner(hidden_BTD))[1]
    with running(slow) as port, opened(browser, f"http://127.0.0.1:{port}/#{KEY}", errors=1) as page:
        wait(page)
        page.fill("#max_tokens", "400")
        page.fill("#question", "Hi")
        page.click("#send")
        page.wait_for_selector(TOKENS)
        page.click("#stop")
        wait(page, "stopped")
        page.reload()
        wait(page)
        page.context.set_offline(True)
        page.fill("#question", "Hi")
        page.click("#send")
        wait(page, "does not answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_every_control_has_a_name(browser, width, scheme):
    with running(tuned()) as port, opened(browser, f"http://127.0.0.1:{port}/#{KEY}", color_scheme=scheme,
                                          viewport={"width": width, "height": 800}, locale="zh-CN") as page:
        wait(page, "就绪")
        said(page).nth(1).click()
        page.wait_for_selector(".heads")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.lang") == "zh"
        bare = page.evaluate("""[...document.querySelectorAll('button, input, textarea, [role=button], [role=img]')]
            .filter((node) => !node.getAttribute('aria-label') && !node.textContent && !node.labels?.length)
            .map((node) => node.outerHTML)""")
        assert bare == []
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="accessibility: axe-core's rules")
        found = axe.Axe().run(page).response["violations"]
        assert [(rule["id"], [node["html"][:90] for node in rule["nodes"][:4]]) for rule in found
                if rule["impact"] in ("serious", "critical")] == []


def test_what_a_model_says_is_text_and_never_markup(browser):
    class Hostile(Bytes):
        def id_to_piece(self, index):
            return "<img src=x onerror=alert(1)>\u202eevil\x1b[2J"

    loaded = made_loaded(0, "<b>name</b>")
    loaded.tokenizer = Hostile()
    with running(loaded) as port, opened(browser, f"http://127.0.0.1:{port}/#{KEY}") as page:
        wait(page)
        text = said(page, "<script>alert(2)</script>").first.inner_text()
        assert text == "<img src=x onerror=alert(1)>\\u202eevil\\u001b[2J"
        assert page.locator("img, #talk script, #model b").count() == 0


def test_a_recording_needs_no_server(browser, tmp_path):
    record(made_loaded(), ["Hi"], tmp_path / "page.html")
    with opened(browser, (tmp_path / "page.html").as_uri()) as page:
        page.locator(TOKENS).nth(2).click()
        page.wait_for_selector(".heads")
        assert page.locator(".choose:has-text('say this')").count() == 0
