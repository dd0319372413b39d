"""What a user does with one conversation on the chat page: asks, stops, judges, compares, reads it in any script and by keyboard."""

import time

import pytest
from chat_page import ANSWERS, CHUNK, finished, needs_chromium, rows, say, until

from tenfold.serve.feedback.feedback import corrections, pairs, ratings, responses

pytest_plugins = ["chat_page"]
pytestmark = needs_chromium


def test_an_answer_streams_and_its_speed_is_shown(page):
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.includes('word word')")
    assert page.is_visible(".stop") and not page.is_visible(".send")
    early = page.inner_text("article.assistant .text")
    until(page, f"document.querySelector('article.assistant .text').innerText.length > {len(early)}")
    assert all(words in page.inner_text(".panel") for words in ("alpha", "first token", "tokens/s"))
    page.press("body", "Escape")
    finished(page)
    assert page.inner_text(".status") == "Stopped"


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_answer_here_and_in_the_engine(page, site, how):
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.includes('word')")
    page.click(".stop") if how == "button" else page.press(".say", "Escape")
    answer = finished(page)
    assert 0 < answer.locator(".text").inner_text().count("word") < 400
    end = time.monotonic() + 60
    while site.in_flight:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert answer.get_by_role("button", name="Good").count() == 0  # what was not finished was not stored
    say(page, "and now")
    assert "I am alpha" in finished(page, 2).inner_text()


def test_markdown_is_shown_and_html_is_text(page):
    say(page, "marked")
    answer = finished(page)
    assert answer.locator("ol > li").count() == 2 and answer.locator("strong").inner_text() == "First"
    assert answer.locator("pre code").text_content() == "def double(x):\n    return 2 * x\n"
    assert answer.locator("td").all_inner_texts() == ["1", "2"]
    assert answer.locator("img").count() == 0 and "<img src=x" in answer.inner_text()
    assert [a.get_attribute("href") for a in answer.locator("a").all()] == ["https://example.org/"]
    assert page.evaluate("window.broken") is None
    answer.get_by_role("button", name="Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "def double(x):\n    return 2 * x\n"


def test_the_page_runs_no_other_script_and_talks_with_no_other_site(page, site):
    """What an attacker would try whose text became HTML; the page's own script runs, or no other test here would pass."""
    port = site.url.rsplit(":", 1)[1].strip("/")
    tried = page.evaluate("""() => [
      () => { const script = document.createElement('script'); script.append('window.broken = 1'); document.body.append(script); },
      () => { const image = document.createElement('img'); image.src = 'x'; image.setAttribute('onerror', 'window.broken = 2'); document.body.append(image); },
      () => { document.createElement('script').src = '/page/main.js'; },
      () => { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); },
    ].filter(attempt => { try { attempt(); return true; } catch { return false; } }).length""")
    assert tried < 3  # HTML and addresses of scripts are refused where they are given
    assert (
        page.evaluate(f"fetch('http://localhost:{port}/health', {{ mode: 'no-cors' }}).then(() => 'sent', () => 'refused')")
        == "refused"
    )
    assert page.evaluate("fetch('/health').then(reply => reply.status)") == 200
    page.evaluate("""() => new Promise(done => {
      const frame = document.createElement('iframe'); frame.src = '/'; document.body.append(frame); setTimeout(done, 500); })""")
    assert len(page.frames) == 1 or not page.frames[1].query_selector(".say")
    assert page.evaluate("window.broken") is None


def test_thumbs_and_corrections_are_kept_with_consent_alone(page, site):
    say(page, "one")
    assert finished(page).get_by_role("button", name="Good").count() == 0
    assert not rows(site, responses)
    page.check(".consent")
    say(page, "two")
    answer = finished(page, 2)
    answer.get_by_role("button", name="Good").click()
    page.wait_for_selector("[aria-pressed=true]")
    (stored,) = rows(site, responses)
    assert stored.messages[-1] == {"role": "user", "content": "two"} and stored.text.startswith("I am alpha")
    assert [(r.response_id, r.value) for r in rows(site, ratings)] == [(stored.id, 1)]
    answer.get_by_role("button", name="Bad").click()
    page.get_by_label("What was wrong").fill("too short")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('[aria-pressed=true]')?.textContent.includes('Bad')")
    assert [(r.value, r.reasons) for r in rows(site, ratings)][1:] == [(-1, ["too short"])]
    answer.get_by_role("button", name="Correct it").click()
    page.get_by_label("Better answer").fill("I am better.")
    page.get_by_role("button", name="Keep correction").click()
    until(page, "document.querySelector('article.assistant:last-child .text').innerText === 'I am better.'")
    assert [r.text for r in rows(site, corrections)] == ["I am better."]
    page.click(".forget")
    page.click("dialog button.main")
    until(page, "document.querySelector('.panel').textContent.includes('deleted')")
    assert not any(rows(site, t) for t in (responses, ratings, corrections))


def test_retry_and_edit_make_branches_that_can_be_walked(page):
    say(page, "hello")
    first = finished(page).locator(".text").inner_text()
    page.get_by_role("button", name="Retry").click()
    until(page, "document.querySelector('article.assistant .tools')?.textContent.includes('2 / 2')")
    second = finished(page).locator(".text").inner_text()
    assert first != second
    page.get_by_role("button", name="Earlier version").click()
    assert page.locator("article.assistant .text").inner_text() == first
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit message").fill("hello again")
    page.get_by_role("button", name="Send again").click()
    until(page, "document.querySelector('article.user .tools').textContent.includes('2 / 2')")
    finished(page)
    assert page.locator("article.user .text").inner_text() == "hello again"
    page.get_by_role("button", name="Earlier version").click()
    assert page.locator("article.user .text").inner_text() == "hello"
    assert page.locator("article.assistant .text").inner_text() == first
    page.click(".list .new")
    assert page.locator("article").count() == 0


@pytest.mark.parametrize("side", ["Left", "Right"])
def test_side_by_side_is_blind_and_says_which_won(page, site, side):
    page.check(".consent")
    page.check(".beside")
    say(page, "who are you")
    answer = finished(page)
    shown = answer.locator(".sides .text").all_inner_texts()
    assert len(shown) == 2 and answer.locator(".who").inner_text() == "Two answers"
    answer.get_by_role("button", name=f"{side} is better").click()
    until(page, "document.querySelectorAll('article.assistant .text').length === 1")
    chosen = shown[side == "Right"]
    assert answer.locator(".text").inner_text() == chosen
    (pair,) = rows(site, pairs)
    texts = {r.id: r.text for r in rows(site, responses)}
    assert texts[pair.a_response_id].startswith("I am alpha") and texts[pair.b_response_id].startswith("I am beta")
    assert texts[getattr(pair, f"{pair.winner}_response_id")] == chosen and pair.blind
    assert pair.position_swapped == ("beta" in shown[0])


def test_all_of_it_by_keyboard(page, site):
    page.evaluate("document.querySelector('.consent').focus()")
    page.keyboard.press("Space")
    page.focus(".say")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator("article.user .text").inner_text() == "one\ntwo"
    assert page.evaluate("document.activeElement.className") == "say"
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if "Good" in page.evaluate("document.activeElement.textContent"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-pressed=true]")
    assert [r.value for r in rows(site, ratings)] == [1]
    assert "Good" in page.evaluate("document.activeElement.textContent")  # not thrown back to the beginning


def test_everything_that_can_be_used_has_a_name(page):
    page.check(".consent")
    say(page, "marked")
    finished(page)
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, a')].filter(e => "
        "!(e.textContent.trim() || e.ariaLabel || e.labels?.length && e.labels[0].textContent.trim())).map(e => e.outerHTML)"
    )
    assert nameless == [] and page.get_attribute("html", "lang") == "en"
    assert page.get_attribute(".status", "role") == "status" and page.inner_text(".status") == "Answer finished"


@pytest.mark.parametrize(("language", "direction"), [("arabic", "rtl"), ("hindi", "ltr")])
def test_text_runs_the_way_it_is_read(page, language, direction):
    say(page, language)
    text = finished(page).locator(".text p").first
    assert text.inner_text() == ANSWERS[language].replace("`", "")
    assert text.evaluate("e => getComputedStyle(e).direction") == direction
    page.fill(".say", ANSWERS[language])
    assert page.locator(".say").evaluate("e => getComputedStyle(e).direction") == direction


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.check(".beside")
    say(page, "wide")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth")
    box = page.locator(".say").bounding_box()
    assert box["width"] > width / 3 and box["y"] + box["height"] <= 700


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    say(page, "marked")
    finished(page)
    ratios = page.evaluate("""() => {
      const canvas = document.createElement('canvas').getContext('2d');
      const light = c => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const d = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
        .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * d[0] + .7152 * d[1] + .0722 * d[2]; };
      const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return 'white'; };
      return [...document.querySelectorAll('p, li, code, code span, td, h2, label, button, .who, .panel')].filter(e => e.checkVisibility() && !e.disabled)
        .map(e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x); return (a + .05) / (b + .05); });
    }""")
    assert len(ratios) > 10 and min(ratios) >= 4.5  # WCAG 2.2, level AA


def test_an_error_is_told_where_the_answer_would_be(page):
    say(page, "x" * 30_000)
    page.wait_for_selector("article .error")
    assert "too many for the context of 4096" in page.inner_text("article .error")
    assert page.get_by_role("button", name="Retry").is_enabled()


@pytest.mark.parametrize(("reply", "said"), [
    ({"status": 502, "content_type": "text/html", "body": "<html>Bad gateway</html>"}, "The server answered 502"),
    ({"content_type": "text/event-stream", "body": CHUNK % "null"}, "Cut off: the connection ended"),
    ({"content_type": "text/event-stream", "body": CHUNK % '"length"' + "data: [DONE]\n\n"}, "Cut: the longest length"),
    ({"content_type": "text/event-stream", "body": (CHUNK % '"stop"').replace("half", " ") + "data: [DONE]\n\n"}, "The answer is empty"),
])  # fmt: skip
def test_an_answer_that_is_not_whole_says_so(page, reply, said):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**reply))
    say(page, "hello")
    assert said in finished(page).inner_text()


def test_a_conversation_survives_a_reload_and_goes_on(page):
    for i, text in enumerate(("hello", "marked"), 1):
        say(page, text)
        finished(page, i)
    page.click("article.assistant >> nth=1 >> text=Retry")
    finished(page, 2)
    before = page.inner_text(".log")
    page.reload()
    page.wait_for_selector("article.assistant >> nth=1")
    assert page.inner_text(".log") == before and "2 / 2" in before
    say(page, "again")
    finished(page, 3)
    page.click(".list .new")
    page.reload()
    page.wait_for_selector(".send:enabled")
    assert not page.inner_text(".log")
