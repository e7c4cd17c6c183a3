// Audio as it comes: 16-bit mono samples at 24,000 Hz, the API's "pcm".
const RATE = 24000;
// Seconds between the arrival of a sound and its playing, also after the stream was late.
const LEAD = 0.05;

/** Plays samples while they come, without gaps, and keeps them. */
class Player {
  pieces = [];
  #length = 0;
  #context = null;
  #sources = new Set();
  #odd = new Uint8Array(0);
  // Each run of samples that are heard without a pause: when it begins (the context's time), at which sample.
  #runs = [];
  #next = 0;
  #scheduled = 0;
  #complete = true;

  /** Called when the last sample was heard. */
  onfinish = () => {};

  /** Seconds of the audio that came. */
  get seconds() {
    return this.#length / RATE;
  }

  /** Begins a new text. Browsers allow sound only if this is called for a click or a key. */
  begin() {
    this.#rewind();
    this.pieces = [];
    this.#length = 0;
    this.#odd = new Uint8Array(0);
    this.#complete = false;
  }

  /** Takes bytes of the stream; an odd one waits for its other half. Returns when they will be heard, in seconds. */
  push(bytes) {
    const all = new Uint8Array(this.#odd.length + bytes.length);
    all.set(this.#odd);
    all.set(bytes, this.#odd.length);
    const whole = all.length - (all.length % 2);
    this.#odd = all.slice(whole);
    const piece = new Int16Array(all.buffer, 0, whole / 2);
    if (!piece.length) return null;
    this.pieces.push(piece);
    this.#length += piece.length;
    return this.#schedule(piece) - this.#context.currentTime + (this.#context.outputLatency || 0);
  }

  /** The stream has ended. */
  end() {
    this.#complete = true;
    this.#check();
  }

  stop() {
    for (const source of this.#sources) {
      source.onended = null;
      source.stop();
    }
    this.#sources.clear();
    this.#complete = true;
    this.#context?.suspend();
  }

  again() {
    this.#rewind();
    for (const piece of this.pieces) this.#schedule(piece);
  }

  /** The second of the audio that is heard now. */
  get position() {
    if (!this.#context) return 0;
    const now = this.#context.currentTime - (this.#context.outputLatency || 0);
    const i = this.#runs.findLastIndex((run) => run.at <= now);
    if (i < 0) return 0;
    const end = this.#runs[i + 1]?.sample ?? this.#scheduled;
    return Math.min(this.#runs[i].sample / RATE + now - this.#runs[i].at, end / RATE);
  }

  /** A WAV file of what came. */
  wav() {
    const size = 2 * this.#length;
    const header = new DataView(new ArrayBuffer(44));
    const name = (at, text) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
    name(0, "RIFF");
    header.setUint32(4, 36 + size, true);
    name(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true);
    header.setUint16(22, 1, true);
    header.setUint32(24, RATE, true);
    header.setUint32(28, 2 * RATE, true);
    header.setUint16(32, 2, true);
    header.setUint16(34, 16, true);
    name(36, "data");
    header.setUint32(40, size, true);
    return new Blob([header, ...this.pieces], { type: "audio/wav" });
  }

  #rewind() {
    this.stop();
    // At the stream's rate, so that no piece is resampled apart from its neighbours.
    this.#context ??= new AudioContext({ sampleRate: RATE });
    this.#context.resume();
    this.#runs = [];
    this.#next = 0;
    this.#scheduled = 0;
  }

  /** Plays a piece after those before it; the context's time at which it begins. */
  #schedule(piece) {
    const context = this.#context;
    if (this.#next <= context.currentTime) {
      this.#next = Math.ceil((context.currentTime + LEAD) * RATE) / RATE;
      this.#runs.push({ at: this.#next, sample: this.#scheduled });
    }
    const buffer = context.createBuffer(1, piece.length, RATE);
    buffer.copyToChannel(Float32Array.from(piece, (sample) => sample / 32768), 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    source.onended = () => {
      this.#sources.delete(source);
      this.#check();
    };
    this.#sources.add(source);
    source.start(this.#next);
    this.#scheduled += piece.length;
    const run = this.#runs.at(-1);
    const at = this.#next;
    this.#next = run.at + (this.#scheduled - run.sample) / RATE;
    return at;
  }

  #check() {
    if (!this.#complete || this.#sources.size) return;
    this.#context.suspend();
    this.onfinish();
  }
}
