"""The chat page's conversations, in a real headless Chromium: kept, found, named, carried away, continued; and how answers are drawn."""

import json
import random
import re
from importlib import resources
from importlib.util import find_spec

import pytest
from chat_page import CHUNK, finished, needs_chromium, say, until

from tenfold.serve.page.routes import POLICY

pytest_plugins = ["chat_page"]
pytestmark = needs_chromium
STREAM = {"content_type": "text/event-stream"}
WHOLE = (CHUNK % '"stop"') + "data: [DONE]\n\n"
RICH = """### How

1. **First** `x`, then https://example.org/a_b and main.py
   - nested *one*
     - deeper ~~gone~~

   with more
2. second

- [x] done
- [ ] to do

```python
def double(x):

    return 2 * x  # twice
```

Area $A = \\pi r^2$ and \\(b\\) for $5 and $6.

$$
\\frac{1}{2}

$$

> quoted
> twice

| a | b |
|---|--:|
| 1 | 2 |

![picture](https://example.org/x.png) <b>not bold</b>

Setext
---

* one

* two
* three
- another list
    code

~~~
open ``` still
~~~
and [a reference][r] at the end

[r]: https://example.org/r
"""


def names(page):
    return page.locator(".rows .name").all_inner_texts()


def listed(page, *wanted):
    until(
        page,
        f"JSON.stringify([...document.querySelectorAll('.rows .name')].map(e => e.innerText)) === {json.dumps(json.dumps(wanted, separators=(',', ':')))}",
    )


def told(page, text):
    page.wait_for_selector(f".panel:has-text({json.dumps(text)})")


def two_chats(page):
    for text in ("first apples", "then pears"):
        page.click(".list .new")
        say(page, text)
        finished(page)
    listed(page, "then pears", "first apples")


def fulfil(page, *replies):
    """Answer the next requests for answers so; returns the list of what they asked."""
    asked, left = [], list(replies)

    def handle(route):
        asked.append(route.request.post_data_json)
        route.fulfill(**left.pop(0))

    page.route("**/v1/chat/completions", handle)
    return asked


def test_conversations_are_listed_found_and_renamed(page):
    two_chats(page)
    page.fill("input[type=search]", "APPLES alpha")
    listed(page, "first apples")
    page.fill("input[type=search]", "")
    listed(page, "then pears", "first apples")
    page.click("text=first apples")
    page.wait_for_selector("article.user:has-text('first apples')")
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name of the conversation").fill("Fruit")
    page.keyboard.press("Enter")
    listed(page, "Fruit", "then pears")
    page.reload()
    page.wait_for_selector("article.user:has-text('first apples')")
    listed(page, "Fruit", "then pears")
    assert page.inner_text("header h2") == "Fruit"


def test_what_was_exported_and_deleted_comes_back_by_import(page, tmp_path):
    two_chats(page)
    before = page.inner_text(".log")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    download.value.save_as(tmp_path / "all.json")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    listed(page, "then pears", "first apples")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.click("dialog button.main")
    listed(page, "first apples")
    assert not page.inner_text(".log")
    for fresh in (1, 0):
        page.set_input_files("input[type=file]", tmp_path / "all.json")
        told(page, f"{fresh} of 2 conversations were imported")
        listed(page, "then pears", "first apples")
    page.click("text=then pears")
    page.wait_for_selector("article.assistant")
    assert page.inner_text(".log") == before


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_away(page):
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.includes('word')")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.click("dialog button.main")
    page.wait_for_selector(".rows .none")
    say(page, "hello")
    finished(page)
    listed(page, "hello")


@pytest.mark.parametrize("spoil", [
    lambda text: text[:-9],
    lambda text: "[]",
    lambda text: text.replace('"tenfold_chats": 1', '"tenfold_chats": 99'),
    lambda text: text.replace('"role": "user"', '"role": "root"'),
    lambda text: text.replace('"text": "first apples"', '"text": {"a": 1}'),
    lambda text: text.replace('"answers": [', '"answers": ["x", '),
    lambda text: text.replace('"shown": 0', '"shown": "none"'),
])  # fmt: skip
def test_a_file_that_was_not_exported_here_is_refused_in_a_sentence(page, tmp_path, spoil):
    chat = {"id": "a", "title": "", "changed": 1, "settings": {}, "shown": 0, "children": [
        {"role": "user", "text": "first apples", "shown": 0, "children": [
            {"role": "assistant", "answers": [{"model": "m", "text": "t", "end": "stop"}], "children": [], "shown": 0}]}]}  # fmt: skip
    (tmp_path / "f.json").write_text(spoil(json.dumps({"tenfold_chats": 1, "conversations": [chat]})))
    page.set_input_files("input[type=file]", tmp_path / "f.json")
    told(page, "This file")
    assert names(page) == []


def test_two_tabs_see_each_other_s_conversations(page, site):
    other = page.context.new_page()
    other.goto(site.url)
    other.wait_for_selector(".send:enabled")
    say(page, "hello")
    finished(page)
    listed(other, "hello")
    other.click("text=hello")
    other.wait_for_selector("article.assistant")
    say(page, "again")
    finished(page, 2)
    until(other, "document.querySelectorAll('article.assistant').length === 2")


def test_settings_are_sent_and_kept_with_their_conversation(page):
    asked = fulfil(page, *[{**STREAM, "body": WHOLE}] * 2)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Longest answer").fill("77")
    say(page, "hello")
    finished(page)
    assert asked[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert (asked[0]["temperature"], asked[0]["max_tokens"]) == (0.2, 77)
    page.click(".list .new")
    page.get_by_label("System prompt").fill("")
    page.get_by_label("Longest answer").fill("")
    say(page, "other")
    finished(page)
    assert asked[1]["messages"] == [{"role": "user", "content": "other"}] and "max_tokens" not in asked[1]
    listed(page, "other", "hello")
    page.click("text=hello")
    until(page, "document.querySelector('[name=system]').value === 'Be brief.'")
    page.get_by_label("Temperature").fill("9")
    page.press(".say", "Tab")
    assert page.evaluate("document.querySelector('[name=temperature]').validity.valid") is False


@pytest.mark.parametrize("end", ["null", '"length"'])
def test_an_answer_that_was_cut_goes_on_where_it_ended(page, end):
    done = "data: [DONE]\n\n" if end != "null" else ""
    asked = fulfil(page, {**STREAM, "body": CHUNK % end + done}, {**STREAM, "body": WHOLE})
    say(page, "hello")
    assert page.locator(".mark").count() == 1 or finished(page).locator(".mark").count() == 1
    finished(page).get_by_role("button", name="Continue").click()
    until(page, "document.querySelector('article.assistant .text').innerText === 'halfhalf'")
    assert asked[1]["continue_final_message"] is True and asked[1]["messages"][-1] == {"role": "assistant", "content": "half"}
    assert finished(page).locator(".mark").count() == 0 and page.get_by_role("button", name="Continue").count() == 0


def test_a_reload_in_the_middle_of_an_answer_keeps_the_question_and_what_had_come(page):
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.split('word').length > 60")  # it is kept every 2 s
    page.reload()
    page.wait_for_selector("article.assistant .mark:has-text('Cut off')")
    kept = page.inner_text("article.assistant .text")
    page.get_by_role("button", name="Continue").click()
    until(page, f"document.querySelector('article.assistant .text')?.innerText.length > {len(kept)}")
    page.keyboard.press("Escape")
    assert finished(page).locator(".text").inner_text().startswith(kept.strip()) and "word" in kept


def test_what_failed_or_is_empty_is_not_said_to_the_model(page):
    asked = fulfil(page, {"status": 502, "content_type": "text/html", "body": "<h1>Bad</h1>"}, {**STREAM, "body": "data: {no\n\n"},
                   {"content_type": "text/html", "body": "<h1>Sign in</h1>"}, {**STREAM, "body": WHOLE.replace("\n\n", "\r\n\r\n: ping\r\n\r\n")})  # fmt: skip
    for number, said in enumerate(("502", "not JSON", "text/html", "half"), 1):
        say(page, f"question {number}")
        assert said in finished(page, number).inner_text()
    assert asked[-1]["messages"] == [{"role": "user", "content": "\n\n".join(f"question {i}" for i in range(1, 5))}]


def test_a_server_that_is_not_there_yet_is_a_sentence_and_can_be_tried_again(page):
    page.route("**/v1/models", lambda route: route.fulfill(status=500, content_type="text/plain", body="Internal Server Error"))
    page.reload()
    page.wait_for_selector(".log .error:has-text('The server answered 500')")
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".send:enabled")
    say(page, "hello")
    assert "I am alpha" in finished(page).inner_text()


def test_each_of_two_answers_can_be_copied(page):
    page.check(".beside")
    say(page, "hello")
    sides = finished(page).locator(".sides > div")
    for side in range(2):
        sides.nth(side).get_by_role("button", name="Copy").click()
        until(
            page,
            f"navigator.clipboard.readText().then(text => text === {json.dumps(sides.nth(side).locator('.text').inner_text())})",
        )


def drawn(page, text, sizes):
    """The HTML of a text that came in pieces of such sizes, of the whole, and how often a finished element was removed or changed."""
    return page.evaluate(
        """async ([text, sizes]) => {
      const { Growing, markdown } = await import("/page/markdown.js");
      const box = document.createElement("div"), whole = document.createElement("div"), growing = new Growing(box);
      let redrawn = 0;
      const watch = list => { for (const { target, removedNodes } of list) if (!target.closest(".tail") && removedNodes.length) redrawn++; };
      const observer = new MutationObserver(watch);
      observer.observe(box, { childList: true, subtree: true });
      let at = 0;
      for (const size of sizes) { at += size; growing.grow(text.slice(0, at)); watch(observer.takeRecords()); }
      observer.disconnect();
      growing.end(text);
      whole.append(markdown(text));
      return [box.innerHTML, whole.innerHTML, redrawn];
    }""",
        [text, sizes],
    )


def loosely(html):
    """Lists whose items are apart and others are drawn alike; which they are is known at the end alone."""
    return re.sub(r"\s+", " ", re.sub(r"</?p[^>]*>", "", html)).replace("> ", ">").replace(" <", "<")


def test_a_text_is_the_same_in_pieces_and_whole_and_nothing_is_drawn_twice(page):
    draw = random.Random(0)
    for most in (1, 3, 10, 40, 200):
        sizes = []
        while sum(sizes) < len(RICH):
            sizes.append(draw.randint(1, most))
        pieces, whole, redrawn = drawn(page, RICH, sizes)
        assert loosely(pieces) == loosely(whole) and not redrawn
    assert "katex" in whole and "hljs-keyword" in whole and "<img" not in whole


def test_markdown_of_all_kinds(page):
    page.evaluate("""async text => { const { markdown } = await import("/page/markdown.js"); const box = document.createElement("div");
      box.className = "kinds"; box.append(markdown(text)); document.body.append(box); }""", RICH)  # fmt: skip
    kinds = page.locator(".kinds")
    for selector in ("ol > li > ul > li > ul > li > s", "input[type=checkbox]:checked", "input:not(:checked)", "pre .hljs-keyword",
                     ".formula .katex math", ".formula.block .katex", "td[align=right]", "a[href='https://example.org/a_b']",
                     "a[href='https://example.org/r']"):  # fmt: skip
        assert kinds.locator(selector).count() >= 1, selector
    assert kinds.locator("img, b").count() == 0 and kinds.locator("a[href*='main.py']").count() == 0
    assert kinds.locator("a:has-text('picture')").get_attribute("rel") == "noopener noreferrer"


HOSTILE = [
    "<script>window.broken = 1</script>", "<img src=x onerror='window.broken = 1'>", "[x](javascript:window.broken=1)",
    "[x](JaVaScRiPt&colon;window.broken=1)", "![x](x\" onerror=\"window.broken=1)", "[x](data:text/html,<script>1</script>)",
    "$\\href{javascript:window.broken=1}{x}$", "$\\htmlClass{a}{x}$", "```\" onmouseover=\"window.broken=1\nx\n```",
    "```html\n<img src=x onerror=window.broken=1>\n```", "<svg onload=window.broken=1>", "<a id=body name=children>x</a>",
]  # fmt: skip


def test_nothing_that_a_model_writes_runs(page):
    found = page.evaluate("""async texts => { const { markdown } = await import("/page/markdown.js"); const box = document.createElement("div");
      for (const text of texts) box.append(markdown(text)); document.body.append(box);
      return [...box.querySelectorAll("*")].flatMap(e => [e.tagName, ...[...e.attributes].map(a => a.name + "=" + a.value)]); }""", HOSTILE)  # fmt: skip
    page.locator("body").hover()
    assert not [
        one for one in found if one.lower().startswith(("on", "script", "img", "href=javascript", "href=data", "id=", "name="))
    ]
    assert page.evaluate("window.broken") is None


def test_the_header_of_a_phone_is_one_line_and_the_list_opens_over_the_page(page):
    page.set_viewport_size({"width": 360, "height": 700})
    say(page, "a question with a long title that does not fit")
    finished(page)
    assert page.locator("header").bounding_box()["height"] <= 52
    assert not page.is_visible(".rows")
    page.get_by_role("button", name="Conversations").click()
    page.wait_for_selector(".rows .name:visible")
    page.keyboard.press("Escape")
    assert not page.is_visible(".rows")


def test_the_page_has_an_icon(page):
    icon = page.get_attribute("link[rel=icon]", "href")
    assert page.evaluate(f"fetch('/{icon}').then(reply => reply.headers.get('content-type'))").startswith("image/svg")


def test_the_chat_lives_in_a_part_of_another_page(page, site):
    """As a tab of the console: under its own policy, beside what keeps its looks, and out of the way while it is hidden."""
    html = '<link rel="stylesheet" href="/page/chat.css"><h1>Console</h1><button>Other</button><section style="height: 500px"></section>'
    headers = {"content-security-policy": POLICY.replace("style-src", "style-src 'unsafe-inline'")}
    page.route(
        "**/console",
        lambda route: route.fulfill(content_type="text/html", body=f"<!doctype html><html lang=en>{html}", headers=headers),
    )
    page.goto(f"{site.url}console")
    looks = "JSON.stringify(['h1', 'button'].map(name => { const s = getComputedStyle(document.querySelector(name)); return [s.font, s.color, s.padding]; }))"
    page.wait_for_load_state()
    before = page.evaluate(looks)
    page.evaluate("import('/page/chat.js').then(({ mount }) => mount(document.querySelector('section')))")
    page.wait_for_selector(".send:enabled")
    assert page.evaluate(looks) == before
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.includes('word')")
    page.evaluate("document.querySelector('section').style.display = 'none'")
    page.press("body", "Escape")
    page.evaluate("document.querySelector('section').style.display = ''")
    assert page.is_visible(".stop")
    page.press("body", "Escape")
    finished(page)
    assert page.locator("section.tenfold-chat").bounding_box()["height"] == 500


@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
def test_axe_finds_no_violation(page):
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    fulfil(
        page,
        {**STREAM, "body": f"data: {json.dumps({'choices': [{'delta': {'content': RICH}}]})}\n\n"},
        {"status": 500},
        *[{**STREAM, "body": WHOLE}] * 2,
    )
    page.get_by_role("button", name="Settings").click()
    page.check(".consent")
    for number in (1, 2):
        say(page, "hello")
        finished(page, number)
    page.check(".beside")
    say(page, "hello")
    finished(page, 3)
    page.evaluate(axe)
    for width, scheme in ((1100, "light"), (1100, "dark"), (360, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        if width == 360:
            page.get_by_role("button", name="Conversations").click()
        found = page.evaluate("axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))")
        assert found == [], (width, scheme)
