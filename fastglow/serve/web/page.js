// The form, its requests, and what they bring.
const $ = (id) => document.getElementById(id);
const KEY = "fastglow-api-key";
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const player = new Player();
const plots = {
  alignment: new Plot($("alignment"), "decoder step", "symbol"),
  mel: new Plot($("mel"), "time in s", "mel channel"),
};

let running = null; // the AbortController of the request whose audio comes or plays
let asked = null; // the request whose audio is there, with the seed that it got
let sentences = [];
let shown = -1; // index of the sentence in the plots
let spoken = -1; // index of the sentence that is heard
let follow = 0; // of requestAnimationFrame

// The API

/** The server's answer; an Error with its message if it refuses. */
async function ask(path, body, signal) {
  const headers = {};
  const key = $("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
  } catch (error) {
    throw signal?.aborted ? error : new Error("The server does not answer. Is it running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("lock").hidden = false;
  const problem = await answer.json().catch(() => null);
  throw new Error(problem?.error?.message ?? `The server answered ${answer.status} ${answer.statusText}.`);
}

/** The request as JSON. The seed is put in as it stands: a number in JavaScript has too few bits for it. */
function json(values, seed) {
  const body = JSON.stringify(values);
  if (seed === "") return body;
  return `${body.slice(0, -1)},"seed":${/^-?[1-9]\d*$|^0$/.test(seed) ? seed : JSON.stringify(seed)}}`;
}

/** The events of a stream of server-sent events. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const blocks = (rest + part.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
  }
}

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

async function loadVoices() {
  try {
    const { voices } = await (await ask("v1/audio/voices")).json();
    const option = ({ id, language, description }) => {
      const element = new Option(language ? `${id} (${language})` : id, id);
      element.dataset.about = description ?? "";
      return element;
    };
    $("voice").replaceChildren(...voices.map(option));
    describeVoice();
    report("");
  } catch (error) {
    report(error.message);
  }
}

// What is heard

async function speak() {
  halt();
  report("");
  clear();
  const began = performance.now();
  const values = {
    model: "tts-1",
    input: $("text").value,
    voice: $("voice").value || undefined,
    speed: $("speed").valueAsNumber,
  };
  const mine = new AbortController();
  running = mine;
  enable();
  say("Speaking…");
  try {
    player.begin();
    const stream = { response_format: "pcm", stream_format: "sse", details: true };
    const answer = await ask("v1/audio/speech", json({ ...values, ...stream }, $("seed").value.trim()), mine.signal);
    asked = { values, seed: answer.headers.get("X-Seed") };
    $("used").textContent = asked.seed;
    for await (const event of events(answer)) take(event, began);
    player.end();
  } catch (error) {
    if (mine.signal.aborted) return;
    mine.abort();
    halt();
    say(player.seconds ? `Broken off after ${duration(player.seconds)}.` : "Nothing was spoken.");
    report(error.message);
  }
}

function take(event, began) {
  if (event.type === "error") throw new Error(event.error.message);
  if (event.type === "speech.audio.delta") {
    const wait = player.push(bytes(event.audio));
    if (wait === null) return;
    if ($("first").textContent === "–") $("first").textContent = duration((performance.now() - began) / 1000 + wait);
    $("seconds").textContent = duration(player.seconds);
    follow ||= requestAnimationFrame(step);
    enable();
  } else if (event.type === "fastglow.sentence") {
    add(event);
  } else if (event.type === "speech.audio.done") {
    $("seconds").textContent = duration(event.audio_seconds);
    $("real-time").textContent = `${(event.audio_seconds / event.compute_seconds).toFixed(1)} ×`;
  }
}

/** Ends the request and the sound. */
function halt() {
  running?.abort();
  running = null;
  player.stop();
  cancelAnimationFrame(follow);
  follow = 0;
  hear(-1, null);
  enable();
}

player.onfinish = () => {
  halt();
  say(player.seconds ? `Finished: ${duration(player.seconds)} of audio.` : "There was nothing to speak.");
};

function stop() {
  if (!running) return;
  const heard = player.position;
  halt();
  say(`Stopped after ${duration(heard)}.`);
}

function again() {
  halt();
  running = new AbortController();
  player.again();
  follow = requestAnimationFrame(step);
  say("Playing again…");
  enable();
}

/** Follows the sound in the words and the plots. */
function step() {
  follow = requestAnimationFrame(step);
  const now = player.position;
  const i = sentences.findIndex((sentence) => sentence.start <= now && now < sentence.end);
  if (i >= 0 && i !== spoken) show(i);
  hear(i, now);
}

function hear(i, now) {
  const word = sentences[i]?.words.find((one) => one.start <= now && now < one.end);
  const before = $("words").querySelector("[aria-current]");
  if (before !== (word?.element ?? null)) {
    before?.removeAttribute("aria-current");
    word?.element.setAttribute("aria-current", "true");
    if (word) reveal(word.element);
  }
  spoken = i;
  const sentence = sentences[shown];
  if (!sentence) return;
  // Without motion, the mark goes from word to word.
  const at = calm.matches ? word?.start : now;
  const part = i === shown && at != null ? (at - sentence.start) / (sentence.end - sentence.start) : null;
  for (const plot of Object.values(plots)) plot.mark(part);
}

/** Scrolls the words, and not the page, to one of them. */
function reveal(word) {
  const box = $("words");
  const [top, bottom] = [word.offsetTop, word.offsetTop + word.offsetHeight];
  if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = top;
}

// What is shown

function clear() {
  sentences = [];
  shown = -1;
  asked = null;
  for (const id of ["first", "seconds", "real-time", "used"]) $(id).textContent = "–";
  $("words").replaceChildren();
  $("sentence").replaceChildren();
  $("figures").hidden = true;
}

/** A sentence that is done: its text, with an element for each word of it that is found there. */
function add(sentence) {
  const { text } = sentence;
  const parts = [];
  const words = [];
  let done = 0;
  for (const { word, start, end } of sentence.words) {
    const at = text.indexOf(word, done);
    if (at < 0) continue;
    const element = document.createElement("span");
    element.textContent = word;
    parts.push(text.slice(done, at), element);
    words.push({ element, start, end });
    done = at + word.length;
  }
  $("words").append(...parts, `${text.slice(done)} `);
  sentences.push({ ...sentence, words });
  $("sentence").add(new Option(`${sentences.length}: ${text}`, sentences.length - 1));
  if (shown < 0) show(0);
}

/** Shows a sentence in the plots. */
function show(i) {
  shown = i;
  const { alignment, mel, start, end, text } = sentences[i];
  $("sentence").value = i;
  $("figures").hidden = false;
  const [steps, symbols] = alignment.shape;
  const weights = bytes(alignment.data);
  plots.alignment.show({
    columns: steps,
    rows: symbols,
    at: (column, row) => weights[column * symbols + row],
    x: [0, steps],
    y: [0, symbols],
    description:
      `Alignment of “${text}”: ${steps} decoder steps, ${symbols} symbols. ` + track(weights, steps, symbols),
  });
  const [channels, frames] = mel.shape;
  const levels = bytes(mel.data);
  plots.mel.show({
    columns: frames,
    rows: channels,
    at: (column, row) => levels[row * frames + column],
    x: [start, end],
    y: [0, channels],
    description:
      `Mel spectrogram of “${text}”: ${frames} frames of ${channels} channels, ` +
      `from ${start.toFixed(2)} to ${end.toFixed(2)} s.`,
  });
}

/** Where the attention is at the beginning, in the middle and at the end, in words. */
function track(weights, steps, symbols) {
  const most = (step) => {
    const row = weights.subarray(step * symbols, (step + 1) * symbols);
    return row.indexOf(Math.max(...row)) + 1;
  };
  if (!steps || !symbols) return "";
  const [first, middle, last] = [0, steps >> 1, steps - 1].map(most);
  return `The attention is at symbol ${first} in the first step, ${middle} in the middle, ${last} in the last.`;
}

async function download() {
  const format = $("format").value;
  const name = `speech-${asked.seed}.${format}`;
  if (format === "wav") return save(player.wav(), name);
  report("");
  say(`Making ${name}…`);
  try {
    const answer = await ask("v1/audio/speech", json({ ...asked.values, response_format: format }, asked.seed));
    save(await answer.blob(), name);
    say(`${name} is ready.`);
  } catch (error) {
    say("No file was made.");
    report(error.message);
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function describeVoice() {
  $("about").textContent = $("voice").selectedOptions[0]?.dataset.about ?? "";
}

const duration = (seconds) => `${seconds.toFixed(2)} s`;
const say = (text) => ($("status").textContent = text);
const report = (text) => ($("error").textContent = text);

/** Buttons that can do nothing now stay in the order of tabs, so that no focus is lost. */
function enable() {
  const can = { stop: running, again: player.seconds && !running, download: player.seconds };
  for (const [id, yes] of Object.entries(can)) $(id).setAttribute("aria-disabled", String(!yes));
}

function onClick(id, act) {
  $(id).addEventListener("click", () => $(id).getAttribute("aria-disabled") === "true" || act());
}

onClick("stop", stop);
onClick("again", again);
onClick("download", download);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$("voice").addEventListener("change", describeVoice);
$("speed").addEventListener("input", () => ($("factor").textContent = `${$("speed").valueAsNumber.toFixed(1)} ×`));
$("sentence").addEventListener("change", () => show(Number($("sentence").value)));
$("key").value = sessionStorage.getItem(KEY) ?? "";
$("key").addEventListener("input", () => sessionStorage.setItem(KEY, $("key").value));
$("key").addEventListener("change", loadVoices);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "Escape") {
    stop();
  }
});
loadVoices();
