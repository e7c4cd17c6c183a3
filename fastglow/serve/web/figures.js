// Plots of a matrix of bytes on a canvas.

/** About five round numbers in a range. */
function ticks(first, last) {
  const rough = (last - first) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(first / step); i * step <= last; i++) found.push(Number((i * step).toPrecision(6)));
  return found;
}

/** The 256 colours of the scheme in use, [red, green, blue] each. */
function colours(style) {
  const stops = style.getPropertyValue("--map").trim().split(/\s+/);
  const parts = stops.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (parts.length - 1);
    const i = Math.min(Math.floor(place), parts.length - 2);
    return parts[i].map((part, channel) => part + (parts[i + 1][channel] - part) * (place - i));
  });
}

/** A plot with the labels of its axes, drawn again when its size or the colour scheme changes. */
class Plot {
  #canvas;
  #labels;
  #matrix = null;
  #image = null;
  #mark = null;

  constructor(canvas, x, y) {
    this.#canvas = canvas;
    this.#labels = { x, y };
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#image = null;
      this.#draw();
    });
  }

  /**
   * Shows a matrix: `at(column, row)` of `columns` x `rows`, row 0 at the bottom; `x` and `y` are the values at the
   * axes' ends, `description` is for those who do not see it.
   */
  show(matrix) {
    this.#matrix = matrix;
    this.#image = null;
    this.#mark = null;
    this.#canvas.setAttribute("aria-label", matrix.description);
    this.#draw();
  }

  /** Marks a part of the width, from 0 to 1; null: nothing. */
  mark(part) {
    if (part === this.#mark) return;
    this.#mark = part;
    this.#draw();
  }

  #paint(style) {
    const { columns, rows, at } = this.#matrix;
    const map = colours(style);
    const image = new ImageData(columns, rows);
    for (let row = 0, i = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, i += 4) {
        image.data.set(map[at(column, rows - 1 - row)], i);
        image.data[i + 3] = 255;
      }
    }
    this.#image = new OffscreenCanvas(columns, rows);
    this.#image.getContext("2d").putImageData(image, 0, 0);
  }

  #draw() {
    const { clientWidth, clientHeight } = this.#canvas;
    const matrix = this.#matrix;
    if (!matrix || !clientWidth) return;
    const style = getComputedStyle(this.#canvas);
    const size = parseFloat(style.fontSize);
    const area = { left: 4.2 * size, top: 0.7 * size, right: clientWidth - size, bottom: clientHeight - 3.2 * size };
    const width = area.right - area.left;
    const height = area.bottom - area.top;
    this.#canvas.width = Math.round(clientWidth * devicePixelRatio);
    this.#canvas.height = Math.round(clientHeight * devicePixelRatio);
    const paper = this.#canvas.getContext("2d");
    if (!matrix.columns || !matrix.rows) return;
    if (!this.#image) this.#paint(style);
    paper.scale(this.#canvas.width / clientWidth, this.#canvas.height / clientHeight);
    // Smooth only where several values share a pixel.
    paper.imageSmoothingEnabled = matrix.columns > width * devicePixelRatio || matrix.rows > height * devicePixelRatio;
    paper.imageSmoothingQuality = "high";
    paper.drawImage(this.#image, area.left, area.top, width, height);
    if (this.#mark !== null) {
      paper.fillStyle = style.getPropertyValue("--head");
      paper.fillRect(area.left + this.#mark * width - 1, area.top, 2, height);
    }
    this.#axes(paper, style, size, area, width, height);
  }

  #axes(paper, style, size, area, width, height) {
    const { x, y } = this.#matrix;
    paper.font = `${size}px ${style.fontFamily}`;
    paper.fillStyle = style.color;
    paper.strokeStyle = style.getPropertyValue("--line");
    paper.strokeRect(area.left, area.top, width, height);
    paper.textAlign = "center";
    paper.textBaseline = "top";
    for (const tick of ticks(...x)) {
      const at = area.left + ((tick - x[0]) / (x[1] - x[0])) * width;
      paper.fillRect(at, area.bottom, 1, 0.3 * size);
      paper.fillText(tick, at, area.bottom + 0.45 * size);
    }
    paper.fillText(this.#labels.x, area.left + width / 2, area.bottom + 1.8 * size);
    paper.textAlign = "right";
    paper.textBaseline = "middle";
    for (const tick of ticks(...y)) {
      const at = area.bottom - ((tick - y[0]) / (y[1] - y[0])) * height;
      paper.fillRect(area.left - 0.3 * size, at, 0.3 * size, 1);
      paper.fillText(tick, area.left - 0.45 * size, at);
    }
    paper.translate(0.8 * size, area.top + height / 2);
    paper.rotate(-Math.PI / 2);
    paper.textAlign = "center";
    paper.fillText(this.#labels.y, 0, 0);
  }
}
