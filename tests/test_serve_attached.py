"""The chat page beyond text: files and pictures beside a message, calls of tools and their results, the tree of branches."""

import base64
import io
import json
from importlib import resources
from importlib.util import find_spec

import pytest
from chat_page import finished, needs_chromium, say, until
from PIL import Image

pytest_plugins = ["chat_page"]
pytestmark = needs_chromium
FILES = "input[aria-label='Files for the message']"
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def event(finish=None, **delta):
    return f"data: {json.dumps({'id': 'a', 'choices': [{'delta': delta, 'finish_reason': finish}]})}\n\n"


def call(**function):
    return event(tool_calls=[{"index": 0, "id": "call-1", "function": function}])


CALLS = call(name="weather", arguments="") + call(arguments='{"city": ') + call(arguments='"Lima"}') + event(finish="tool_calls")


class Asked:
    """The bodies of the requests for answers, each of which is answered with the next of `replies`, or with "Yes."."""

    def __init__(self):
        self.bodies, self.replies = [], []

    def answer(self, route):
        self.bodies.append(route.request.post_data_json)
        body = self.replies.pop(0) if self.replies else event(content="Yes.", finish="stop")
        route.fulfill(content_type="text/event-stream", body=f"{body}data: [DONE]\n\n")


@pytest.fixture
def asked(page):
    asked = Asked()
    page.route("**/v1/chat/completions", asked.answer)
    return asked


def attach(page, name, kind, content):
    page.set_input_files(FILES, {"name": name, "mimeType": kind, "buffer": content})


def jpeg(width, height):
    """A photograph whose camera wrote beside it where it was taken."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x010E] = "a secret place"
    Image.new("RGB", (width, height), "red").save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_a_file_goes_to_the_model_as_text_and_stays_in_the_conversation(page):
    attach(page, "notes.md", "text/markdown", b"the file says marked")
    page.wait_for_selector(".files summary:visible")
    page.press(".say", "Enter")
    assert "Two ways" in finished(page).inner_text()  # what the engine says to `marked`
    page.reload()
    page.wait_for_selector("article.user summary")
    page.click("article.user summary")
    assert page.inner_text("article.user pre") == "the file says marked"


@pytest.mark.parametrize(("name", "kind", "content", "said"), [
    ("data.bin", "", b"\x00\x01", "data.bin is no text"),
    ("latin.txt", "text/plain", "é".encode("latin-1"), "latin.txt is no text"),
    ("cat.jpg", "image/jpeg", jpeg(8, 8), "sees no pictures"),
])  # fmt: skip
def test_a_file_that_the_model_cannot_read_is_refused_with_the_reason(page, name, kind, content, said):
    attach(page, name, kind, content)
    until(page, f"document.querySelector('.panel').textContent.includes({json.dumps(said)})")
    assert not page.is_visible(".files li")


def test_a_picture_is_made_small_and_loses_what_its_camera_wrote(page, site, asked):
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "seer", "capabilities": {"vision": True}}]}))
    page.goto(site.url)
    page.wait_for_selector(".send:enabled")
    attach(page, "cat.jpg", "image/jpeg", jpeg(3136, 20))
    page.wait_for_selector(".files img:visible")
    say(page, "What is it?")
    finished(page)
    picture, text = asked.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and sent.size == (1568, 10) and not sent.getexif()
    assert page.locator("article.user img").evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 1568


def test_calls_of_tools_are_shown_and_what_they_gave_goes_back(page, asked):
    asked.replies = [CALLS]
    page.get_by_role("button", name="Settings").click()
    tools = page.get_by_label("Tools that the model may call")
    tools.fill("[{}]")
    assert not tools.evaluate("box => box.checkValidity()")
    tools.fill(json.dumps([TOOL]))
    say(page, "How warm is Lima?")
    answer = finished(page)
    assert asked.bodies[0]["tools"] == [{"type": "function", "function": TOOL}]
    assert "Calls weather" in answer.inner_text() and json.loads(answer.locator(".call pre").inner_text()) == {"city": "Lima"}
    page.get_by_label("Result of weather").fill("21 degrees")
    answer.get_by_role("button", name="Send results").click()
    finished(page, 2)
    called, gave = asked.bodies[1]["messages"][-2:]
    assert gave == {"role": "tool", "tool_call_id": "call-1", "content": "21 degrees"}
    assert called["tool_calls"][0]["id"] == "call-1" and json.loads(called["tool_calls"][0]["function"]["arguments"]) == {
        "city": "Lima"
    }
    assert "weather gave" in page.locator("article.tool").inner_text()


def test_the_tree_shows_every_branch_and_opens_one(page):
    say(page, "hello")
    first = finished(page).locator(".text").inner_text()
    page.get_by_role("button", name="Retry").click()
    until(page, "document.querySelector('article.assistant .tools')?.textContent.includes('2 / 2')")
    finished(page)
    page.get_by_role("button", name="Branches").click()
    entries = page.locator(".branches button")
    assert entries.count() == 3 and page.locator(".branches button[aria-current]").count() == 2
    say(page, "and then")
    finished(page, 2)
    assert entries.count() == 5
    page.locator(".branches button", has_text=first).click()
    until(page, "document.querySelectorAll('article').length === 2")
    assert page.locator("article.assistant .text").inner_text() == first and "1 / 2" in page.inner_text(".log")
    page.locator(".branches button", has_text="and then").click()
    until(page, "document.querySelectorAll('article').length === 4")


def test_what_is_exported_is_imported_as_it_was(page):
    """Files, pictures, calls and results too; and nothing that is none of them."""
    text, again, refused = page.evaluate(
        """async () => {
      const { add, conversation, exported, imported } = await import('/page/conversation.js');
      const whole = conversation({ system: '', tools: '[]' });
      const user = add(whole, { role: 'user', text: '', files: [{ name: 'a', text: 'b' }, { name: 'c', image: 'data:image/png;base64,AAAA' }] });
      const answer = add(user, { role: 'assistant', answers: [{ model: 'm', text: '', calls: [{ id: '1', name: 'f', arguments: '{}' }], end: 'tool_calls' }] });
      add(answer, { role: 'tool', results: [{ id: '1', name: 'f', text: 'r' }] });
      const text = exported([whole]);
      const tried = text.replace('data:image/png;base64,AAAA', 'https://example.org/x.png');
      let refused = false;
      try { imported(tried); } catch { refused = true; }
      return [text, exported(imported(text)), refused];
    }"""
    )
    assert json.loads(again) == json.loads(text) and refused


@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
def test_a_call_is_shown_while_it_is_written(page):
    page.evaluate(
        """() => {
      const fetched = window.fetch;
      window.fetch = (url, options) => !String(url).endsWith('/v1/chat/completions') ? fetched(url, options) : Promise.resolve(
        new Response(new ReadableStream({ start: made => { window.said = made; } }), { headers: { 'content-type': 'text/event-stream' } }));
    }"""
    )
    write = "text => window.said.enqueue(new TextEncoder().encode(text))"
    say(page, "How warm is Lima?")
    page.wait_for_function("() => window.said")
    page.evaluate(write, call(name="weather", arguments="") + call(arguments='{"city": '))
    page.wait_for_selector(".call:has-text('Calls weather')")
    assert page.locator(".call pre").inner_text() == '{"city": ' and page.get_by_label("Result of weather").count() == 0
    page.evaluate(write, call(arguments='"Lima"}') + event(finish="tool_calls") + "data: [DONE]\n\n")
    page.evaluate("() => window.said.close()")
    assert json.loads(finished(page).locator(".call pre").inner_text()) == {"city": "Lima"}
    assert page.locator(".call").count() == 1


def test_axe_finds_no_violation_in_files_calls_and_branches(page, asked):
    asked.replies = [CALLS]
    attach(page, "notes.md", "text/markdown", b"text")
    page.wait_for_selector(".files summary:visible")
    say(page, "hello")
    finished(page)
    page.click("article.user summary")
    attach(page, "more.md", "text/markdown", b"text")
    page.get_by_role("button", name="Branches").click()
    page.get_by_role("button", name="Settings").click()
    page.wait_for_selector("form .files summary:visible")
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
    for width, scheme in ((1100, "light"), (360, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))")
        assert found == [], (width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
