// The heat map: rows × columns of a matrix on a canvas of the size that is seen, drawn anew as it is scrolled, with the
// labels of what is seen along its two sides.

const LARGEST_CELL = 72; // CSS pixels
const SMALLEST_CELL = 0.05;
const LABEL_PITCH = 14; // between the labels of neighbours, so that they do not touch
const MARK_PITCH = 16; // beside one that is marked, which has a border
const LABEL_LETTERS = 14;

class HeatMap {
  constructor(root, onPoint, onPin) {
    this.onPoint = onPoint;
    this.onPin = onPin;
    this.plot = root;
    this.corner = root.querySelector(".corner");
    this.top = root.querySelector(".axis-top");
    this.side = root.querySelector(".axis-side");
    this.scroller = root.querySelector(".scroller");
    this.sizer = root.querySelector(".sizer");
    this.canvas = root.querySelector("canvas");
    this.bands = { row: root.querySelector(".band-row"), column: root.querySelector(".band-column") };
    this.matrix = null;
    this.fit = true;
    this.cell = LARGEST_CELL;
    this.cursor = null;
    this.pinned = null;
    this.scroller.addEventListener("scroll", () => this.draw());
    this.scroller.addEventListener("pointermove", (event) => this.onPoint(this.#cellAt(event)));
    this.scroller.addEventListener("pointerleave", () => this.onPoint(null));
    this.scroller.addEventListener("click", (event) => {
      const cell = this.#cellAt(event);
      if (cell) this.onPin(cell);
    });
    new ResizeObserver(() => this.layout()).observe(root.parentElement);
  }

  show(matrix, codes) {
    const kept = this.matrix !== null && this.matrix.rows === matrix.rows && this.matrix.columns === matrix.columns;
    this.matrix = matrix;
    this.codes = codes;
    if (!kept) this.scroller.scrollTo(0, 0);
    this.layout();
  }

  point(cursor, pinned, follow = false) {
    this.cursor = cursor;
    this.pinned = pinned;
    if (this.matrix === null) return;
    if (follow && cursor) this.#bringIntoView(cursor);
    this.#mark();
  }

  zoom(factor) {
    this.fit = false;
    const { scroller, cell } = this;
    const next = Math.min(LARGEST_CELL, Math.max(SMALLEST_CELL, cell * factor));
    const middle = [scroller.scrollLeft + scroller.clientWidth / 2, scroller.scrollTop + scroller.clientHeight / 2];
    this.cell = next;
    this.layout();
    scroller.scrollTo(
      (middle[0] * next) / cell - scroller.clientWidth / 2,
      (middle[1] * next) / cell - scroller.clientHeight / 2,
    );
    this.draw();
  }

  fitWindow() {
    this.fit = true;
    this.layout();
  }

  // Sizes of everything; then draws.
  layout() {
    const { matrix, plot } = this;
    if (matrix === null || plot.parentElement.clientWidth === 0) return;
    this.rowNames = range(matrix.rows).map((row) => labelOf(matrix.rowName(row)));
    this.columnNames = range(matrix.columns).map((column) => labelOf(matrix.columnName(column)));
    const side = Math.max(84, widest(this.rowNames) + 14);
    const columnWidth = widest(this.columnNames) + 10;
    const room = { width: plot.parentElement.clientWidth - side - 4, height: 0.68 * window.innerHeight };
    // Labels of columns lie flat where there is room for them, else they stand.
    const flat = Math.min(room.width / matrix.columns, LARGEST_CELL) >= columnWidth;
    const top = flat && this.fit ? 24 : Math.max(40, columnWidth + 4);
    if (this.fit) this.cell = Math.min(LARGEST_CELL, room.width / matrix.columns, room.height / matrix.rows);
    this.flat = this.cell >= columnWidth && top === 24;
    const size = { width: matrix.columns * this.cell, height: matrix.rows * this.cell };
    const bar = this.fit ? 0 : 16; // room for scroll bars
    plot.style.gridTemplateColumns = `${side}px ${Math.min(room.width, size.width + bar)}px`;
    plot.style.gridTemplateRows = `${top}px ${Math.min(room.height, size.height + bar)}px`;
    this.sizer.style.width = `${size.width}px`;
    this.sizer.style.height = `${size.height}px`;
    this.scroller.style.overflow = this.fit ? "hidden" : "auto";
    this.draw();
  }

  draw() {
    if (this.matrix === null) return;
    this.#drawCells();
    this.#mark();
  }

  // What changes as the mouse moves; the cells stay.
  #mark() {
    this.#label(this.side, this.rowNames, this.scroller.scrollTop, this.scroller.clientHeight, "row");
    this.#label(this.top, this.columnNames, this.scroller.scrollLeft, this.scroller.clientWidth, "column");
    this.#drawBands();
  }

  #drawCells() {
    const { canvas, scroller, matrix, codes, cell } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.min(scroller.clientWidth, matrix.columns * cell);
    const height = Math.min(scroller.clientHeight, matrix.rows * cell);
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const columns = spans(canvas.width, width, scroller.scrollLeft, cell, matrix.columns);
    const rows = spans(canvas.height, height, scroller.scrollTop, cell, matrix.rows);
    const context = canvas.getContext("2d", { willReadFrequently: true }); // kept where its pixels are made
    const image = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let y = 0; y < canvas.height; y++) {
      const start = y * canvas.width;
      if (y > 0 && rows[2 * y] === rows[2 * y - 2] && rows[2 * y + 1] === rows[2 * y - 1]) {
        pixels.copyWithin(start, start - canvas.width, start);
        continue;
      }
      for (let x = 0; x < canvas.width; x++) {
        // Where a pixel covers several cells, the largest is seen: none that is bright is lost.
        let code = BLANK;
        for (let row = rows[2 * y]; row < rows[2 * y + 1]; row++) {
          const at = row * matrix.columns;
          for (let column = columns[2 * x]; column < columns[2 * x + 1]; column++) {
            if (codes[at + column] > code) code = codes[at + column];
          }
        }
        pixels[start + x] = PALETTE[code];
      }
    }
    context.putImageData(image, 0, 0);
  }

  // The labels of what is seen, as many as fit without touching; that of the cursor always, above the others.
  #label(axis, names, scrolled, seen, kind) {
    const { cell } = this;
    const standing = kind === "row" || !this.flat;
    const stride = standing ? roundStep(LABEL_PITCH / cell) : 1;
    const first = Math.floor(Math.max(0, scrolled / cell) / stride) * stride;
    const last = Math.min(names.length, Math.ceil((scrolled + seen) / cell));
    const middleOf = (at) => (at + 0.5) * cell - scrolled;
    const isSeen = (at) => middleOf(at) >= 0 && middleOf(at) <= seen;
    const labels = [];
    const put = (at, className) => labels.push(this.#labelAt(names[at], middleOf(at), kind, className));
    const marks = [[this.cursor?.[kind] ?? -1, "cursor"], [kind === "row" ? (this.pinned ?? -1) : -1, "pinned"]];
    const marked = marks.filter(([at]) => at >= 0 && isSeen(at));
    if (marked.length === 2 && Math.abs(marked[0][0] - marked[1][0]) * cell < MARK_PITCH) marked.pop();
    for (let at = first; at < last; at += stride) {
      const covered = marked.some(([other]) => at === other || (standing && Math.abs(at - other) * cell < MARK_PITCH));
      if (isSeen(at) && !covered) put(at, "label");
    }
    for (const [at, mark] of marked) put(at, `label ${mark}`);
    axis.replaceChildren(...labels);
  }

  #labelAt(name, middle, kind, className) {
    const label = document.createElement("span");
    label.className = kind === "column" && this.flat ? `${className} flat` : className;
    if (name.position !== null) {
      const position = document.createElement("small");
      position.textContent = name.position;
      label.append(position);
    }
    if (name.text !== null) label.append(name.text);
    label.style[kind === "row" ? "top" : "left"] = `${middle}px`;
    return label;
  }

  #drawBands() {
    const { cell, scroller } = this;
    const thick = Math.max(cell, 3);
    const row = this.cursor?.row ?? this.pinned;
    const column = this.cursor?.column ?? null;
    for (const [name, at, scrolled, seen] of [
      ["row", row, scroller.scrollTop, scroller.clientHeight],
      ["column", column, scroller.scrollLeft, scroller.clientWidth],
    ]) {
      const band = this.bands[name];
      const start = (at + 0.5) * cell - scrolled;
      band.hidden = at === null || at < 0 || start < 0 || start > seen;
      band.style[name === "row" ? "top" : "left"] = `${start - thick / 2}px`;
      band.style[name === "row" ? "height" : "width"] = `${thick}px`;
      band.style[name === "row" ? "width" : "height"] =
        `${Math.min(seenAcross(this, name), (name === "row" ? this.matrix.columns : this.matrix.rows) * cell)}px`;
    }
  }

  #cellAt(event) {
    const box = this.scroller.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left + this.scroller.scrollLeft) / this.cell);
    const row = Math.floor((event.clientY - box.top + this.scroller.scrollTop) / this.cell);
    const inside = column >= 0 && row >= 0 && column < this.matrix?.columns && row < this.matrix?.rows;
    return inside ? { row, column } : null;
  }

  #bringIntoView({ row, column }) {
    const { scroller, cell } = this;
    const into = (at, scrolled, seen) => Math.max((at + 1) * cell - seen, Math.min(at * cell, scrolled));
    scroller.scrollTo(
      column < 0 ? scroller.scrollLeft : into(column, scroller.scrollLeft, scroller.clientWidth),
      row < 0 ? scroller.scrollTop : into(row, scroller.scrollTop, scroller.clientHeight),
    );
  }
}

function seenAcross(map, name) {
  return name === "row" ? map.scroller.clientWidth : map.scroller.clientHeight;
}

// For each pixel the cells that it covers, as start, stop.
function spans(pixels, width, scrolled, cell, count) {
  const found = new Uint32Array(2 * pixels);
  const step = width / pixels;
  for (let pixel = 0; pixel < pixels; pixel++) {
    let start = Math.floor((scrolled + (pixel + 0.5) * step) / cell);
    let stop = start + 1;
    if (cell < step) {
      start = Math.floor((scrolled + pixel * step) / cell);
      stop = Math.ceil((scrolled + (pixel + 1) * step) / cell);
    }
    found[2 * pixel] = Math.min(start, count - 1);
    found[2 * pixel + 1] = Math.min(Math.max(stop, start + 1), count);
  }
  return found;
}

// The least of 1, 2, 5, 10, 20, 50 … that is not below `least`.
function roundStep(least) {
  let decade = 1;
  for (;;) {
    for (const digit of [1, 2, 5]) if (digit * decade >= least) return digit * decade;
    decade *= 10;
  }
}

function range(count) {
  return Array.from({ length: count }, (_, at) => at);
}

function labelOf({ position, text }) {
  return { position, text: text === null ? null : shortened(text, LABEL_LETTERS) };
}

// How wide the widest of these labels is drawn, in CSS pixels.
function widest(names) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = getComputedStyle(document.querySelector(".plot")).font;
  let width = 0;
  for (const { position, text } of names) {
    const small = position === null ? 0 : 0.85 * context.measureText(String(position)).width + 5;
    width = Math.max(width, small + (text === null ? 0 : context.measureText(text).width));
  }
  return Math.ceil(width);
}
