"""The page in a real browser, with a real server and the bundled voice."""

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
import urllib.error
import urllib.request
import wave
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright

from fastglow.serve import create_app

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and this machine has none")

RATE = 24000
PATIENCE = 60_000  # ms
TEXT = "It costs $3.50. Really?"
LONG = "One more sentence makes this text too long to wait for it. " * 40
# What the page gives to the audio device, and which words it marks when.
RECORDER = """
window.pieces = [];
window.marks = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  window.context = this.context;
  const bytes = Array.from(new Uint8Array(this.buffer.getChannelData(0).buffer), (byte) => String.fromCharCode(byte));
  pieces.push({ when, rate: this.buffer.sampleRate, length: this.buffer.length, samples: btoa(bytes.join("")) });
  return start.call(this, when);
};
document.addEventListener("DOMContentLoaded", () => new MutationObserver((changes) => {
  for (const { target } of changes)
    if (target.ariaCurrent)
      marks.push([target.textContent, context.currentTime - (context.outputLatency || 0)]);
}).observe(document.getElementById("words"), { subtree: true, attributeFilter: ["aria-current"] }));
"""
# Text whose contrast with the background is below what WCAG 2.2 AA asks for.
FAINT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 0 ? ground(element.parentElement) : colour;
  };
  const ratio = (element) => {
    const pair = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  };
  const seen = [...document.body.querySelectorAll("*")].filter((element) => element.checkVisibility() &&
    (element.matches("input, textarea") || [...element.childNodes].some((node) => node.data?.trim())));
  return [seen.length, seen.filter((element) => ratio(element) < 4.5).map((element) => element.outerHTML)];
}"""
PIXELS = """(canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.width, canvas.height, btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))];
}"""


@pytest.fixture(scope="module")
def url():
    server = uvicorn.Server(uvicorn.Config(create_app(), http="h11", ws="none", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, url):
    """`opened(**options)`: the page in a new window; at the end, it has reported no error and asked no other host."""
    contexts, complaints, requests = [], [], []

    def complain(message):
        # An answer that is not 200 is a message, too.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(RECORDER)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        expect(page.get_by_label("Voice")).to_have_value("heart")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert {request.partition("v1/")[0] for request in requests if not request.startswith("blob:")} == {url}


def ask(url, n_bytes=None, **values):
    """The API's own answer, or its first bytes."""
    request = urllib.request.Request(
        f"{url}v1/audio/speech", json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return answer.read(n_bytes)


def events_of(url, **values):
    """The API's own events."""
    stream = ask(url, stream_format="sse", response_format="pcm", **values).decode()
    return [json.loads(block.removeprefix("data: ")) for block in stream.split("\n\n") if block]


def type_into(page, label, text):
    page.get_by_label(label, exact=True).focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


def speak(page, text=TEXT, seed="1"):
    for label, entry in (("Text", text), ("Speed", "3"), ("Seed", seed)):
        page.get_by_label(label, exact=True).fill(entry)
    page.keyboard.press("Control+Enter")


def finished(page):
    expect(page.get_by_role("status")).to_have_text(re.compile("^Finished"))


def value(page, term):
    """What stands beside a term in the list of results."""
    return page.locator("dl div", has_text=term).locator("dd").text_content()


def download(page, format):
    page.get_by_label("Format").select_option(format)
    with page.expect_download() as started:
        page.get_by_role("button", name="Download").click()
    return started.value.suggested_filename, Path(started.value.path())


def samples(path):
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        return file.readframes(file.getnframes())


def test_speaks_by_keyboard(opened, url):
    page = opened()
    type_into(page, "Text", TEXT)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Speed")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Speak")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.context?.state === 'running' && context.currentTime > pieces[0].when")
    finished(page)

    pcm = ask(url, input=TEXT, voice="heart", speed=1.2, seed=7, response_format="pcm")
    heard = page.evaluate("pieces")
    assert {piece["rate"] for piece in heard} == {RATE}
    played = np.frombuffer(b"".join(base64.b64decode(piece["samples"]) for piece in heard), "<f4")
    assert np.array_equal(played * 32768, np.frombuffer(pcm, "<i2"))
    assert value(page, "Audio") == f"{len(pcm) / 2 / RATE:.2f} s"
    assert value(page, "Seed used") == "7"
    assert float(re.fullmatch(r"([\d.]+) ×", value(page, "Real-time factor"))[1]) > 0
    assert float(re.fullmatch(r"([\d.]+) s", value(page, "First sound"))[1]) > 0
    assert page.locator("#words").text_content().split() == TEXT.split()

    name, path = download(page, "wav")
    assert name == "speech-7.wav"
    assert samples(path) == pcm
    name, path = download(page, "flac")
    assert name == "speech-7.flac"
    assert path.read_bytes() == ask(url, input=TEXT, voice="heart", speed=1.2, seed=7, response_format="flac")


def test_plays_again_without_gaps_and_marks_the_words(opened, url):
    page = opened()
    speak(page, seed="9007199254740993")  # 2^53 + 1 is no number of JavaScript
    finished(page)
    assert value(page, "Seed used") == "9007199254740993"
    page.evaluate("pieces = [], marks = []")
    page.get_by_role("button", name="Play again").click()
    finished(page)
    heard, marks = page.evaluate("[pieces, marks]")
    ends = np.cumsum([piece["length"] for piece in heard]) / RATE
    begins = np.array([piece["when"] for piece in heard]) - heard[0]["when"]
    assert begins[1:] == pytest.approx(ends[:-1], abs=1e-6)

    found = events_of(url, input=TEXT, speed=3, seed=2**53 + 1, timestamps=True)
    words = [word for event in found for word in event.get("words", [])]
    assert len(words) >= 4 and marks
    i = 0
    for word, at in marks:
        i = next(j for j in range(i, len(words)) if words[j]["word"] == word)
        assert words[i]["start"] - 0.05 <= at - heard[0]["when"] <= words[i]["end"] + 0.05


def plotted(page, name, rows, columns):
    """The colours of a plot at its values' places, [rows, columns, 3], the lowest row first."""
    width, height, data = page.locator(f"#{name}").evaluate(PIXELS)
    pixels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4).astype(int)
    opaque = pixels[..., 3] == 255  # the paper around the plot is not
    (y, *_, bottom), (x, *_, right) = (np.flatnonzero(opaque.mean(axis) > 0.5) for axis in (1, 0))
    ys = y + (np.arange(rows) + 0.5) * (bottom + 1 - y) / rows
    xs = x + (np.arange(columns) + 0.5) * (right + 1 - x) / columns
    return pixels[ys.astype(int)[::-1, None], xs.astype(int), :3]


def test_plots(opened, url):
    page = opened(device_scale_factor=2, color_scheme="light")
    assert page.locator("canvas").first.is_hidden()
    speak(page)
    finished(page)
    events = [
        event
        for event in events_of(url, input=TEXT, speed=3, seed=1, details=True)
        if event["type"] == "fastglow.sentence"
    ]
    assert len(events) == 2
    for i in (0, 1):
        page.get_by_label("Sentence in the plots").select_option(index=i)
        matrices = {
            name: np.frombuffer(base64.b64decode(events[i][name]["data"]), np.uint8).reshape(events[i][name]["shape"])
            for name in ("alignment", "mel")
        }
        (steps, symbols), (channels, frames) = matrices["alignment"].shape, matrices["mel"].shape
        shown = {name: page.locator(f"#{name}").get_attribute("aria-label") for name in matrices}
        assert (
            events[i]["text"] in shown["alignment"] and f" {steps} decoder steps, {symbols} symb" in shown["alignment"]
        )
        assert events[i]["text"] in shown["mel"] and f" {frames} frames of {channels} channels" in shown["mel"]
        matrices["alignment"] = matrices["alignment"].T
        for scheme, sign, width in (("light", -1, 1280), ("dark", 1, 500)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            for name, matrix in matrices.items():
                plot = page.locator(f"#{name}").element_handle()
                page.wait_for_function("(c) => c.width === Math.round(2 * c.clientWidth)", arg=plot)
                light = sign * plotted(page, name, *matrix.shape).sum(axis=-1)
                assert np.corrcoef(light.ravel(), matrix.ravel())[0, 1] > 0.9


def test_a_stopped_text_costs_no_more(opened, url):
    page = opened()
    speak(page, LONG, "3")
    page.wait_for_function("() => window.context?.state === 'running' && context.currentTime > pieces[0].when")
    with page.expect_event("requestfailed") as failed:
        page.keyboard.press("Escape")
    assert failed.value.url == f"{url}v1/audio/speech"
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^Stopped after [\d.]+ s\.$"))
    page.wait_for_function("() => context.state === 'suspended'")
    part = samples(download(page, "wav")[1])
    assert part and part == ask(url, len(part), input=LONG, voice="heart", speed=3, seed=3, response_format="pcm")


def test_an_error_is_told(opened, url):
    page = opened()
    speak(page, seed="seven")
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, input=TEXT, seed="seven")
    with refused.value as answer:
        message = json.load(answer)["error"]["message"]
    assert "seed" in message
    expect(page.get_by_role("alert")).to_have_text(message)
    expect(page.get_by_role("status")).to_have_text("Nothing was spoken.")
    speak(page, "Yes.", "1")
    finished(page)
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_broken_stream(opened):
    """Bytes that split a sample, an error after them, and answers that are not the API's."""
    page = opened()
    pcm = np.arange(-600, 600, dtype="<i2").tobytes()
    deltas = [
        {"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()} for part in (pcm[:601], pcm[601:])
    ]
    events = [*deltas, {"type": "error", "error": {"message": "The voice broke."}}]
    answers = [
        {"headers": {"X-Seed": "5"}, "body": "".join(f"data: {json.dumps(event)}\n\n" for event in events)},
        {"status": 502, "body": "<html>"},
    ]
    page.route("**/v1/audio/speech", lambda route: route.fulfill(**answers.pop(0)) if answers else route.abort())
    speak(page)
    expect(page.get_by_role("alert")).to_have_text("The voice broke.")
    expect(page.get_by_role("status")).to_have_text("Broken off after 0.05 s.")
    assert samples(download(page, "wav")[1]) == pcm
    for message in ("The server answered 502 Bad Gateway.", "The server does not answer. Is it running?"):
        speak(page)
        expect(page.get_by_role("alert")).to_have_text(message)
        expect(page.get_by_role("button", name="Download")).to_be_disabled()


def test_a_key_is_asked_for(opened):
    page = opened()
    asked = []

    def answer(route):
        asked.append(route.request.headers.get("authorization"))
        if asked[-1] == "Bearer sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "A key is needed.", "type": "", "param": None}})

    page.route("**/v1/**", answer)
    assert page.get_by_label("API key").is_hidden()
    speak(page, "Yes.")
    expect(page.get_by_role("alert")).to_have_text("A key is needed.")
    page.get_by_label("API key").fill("sesame")
    page.keyboard.press("Control+Enter")
    finished(page)
    assert asked[0] is None and set(asked[1:]) == {"Bearer sesame"}
    assert page.evaluate("localStorage.length") == 0


def test_is_for_all(opened):
    """Names of the controls, contrast in both schemes, and width on a small or enlarged screen."""
    page = opened(viewport={"width": 320, "height": 640}, color_scheme="light")
    page.locator("#lock").evaluate("element => element.hidden = false")
    speak(page)
    finished(page)
    page.locator("#words span").first.evaluate("element => element.setAttribute('aria-current', 'true')")
    page.get_by_role("alert").evaluate("element => element.textContent = 'An error.'")
    controls = re.findall(
        r"^ *- '?(button|textbox|combobox|slider|img|form|region)\b(.*)", page.locator("body").aria_snapshot(), re.M
    )
    assert len(controls) >= 14
    assert not [control for control in controls if not re.match(r' "[^"]+"', control[1])]
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    pictures = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        n_texts, faint = page.evaluate(FAINT)
        assert n_texts > 30
        assert not faint
        pictures.add(page.screenshot())
    assert len(pictures) == 2


def test_is_one_document(url):
    """Nothing but a favicon in the document has an address, and its policy allows the script and style in it alone."""
    with urllib.request.urlopen(url) as answer:
        policy, document = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert set(re.findall(r'(?:src|href)="([^"]{5})', document)) == {"data:"}
    assert not re.findall(r"<[^>]* (?:on\w+|style)=", document.partition("<script")[0])
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", document, re.S)
        assert allowed[directive] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert allowed["default-src"] == "'none'" and allowed["connect-src"] == "'self'"
