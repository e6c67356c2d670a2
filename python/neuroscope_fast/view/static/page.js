// The page: what is chosen, and what is shown of it.

const contents = JSON.parse(document.getElementById("contents").textContent);
const source = new Remembered(contents.embedded ? new EmbeddedSource(contents) : new ServerSource(), 24);
const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));

const chosen = { group: contents.groups[0], entry: null, head: null, prompt: 0, row: 0 };
const UNNAMED = { known: false, texts: [], prompt_tokens: 0 }; // of a module that reads other tokens than the run's
const shown = { matrix: null, codes: null, top: 0, tokens: null, read: 0 };
const pointer = { cursor: null, pinned: null };
let asked = 0; // counts what was asked for, so that a late answer to an earlier question is not shown

const grid = new HeadGrid(part.grid, source, (entry, head, focus) => choose({ entry, head }, focus));
const map = new HeatMap(part.plot, (cell) => point(cell), (cell) => pin(cell.row));
const text = new TokenText(part.text, pointAtToken, pinToken);

function start() {
  document.title = `Attention: ${plain(contents.run)}`;
  part.run.textContent = plain(contents.run);
  part.facts.textContent = [`model ${contents.model}`, contents.dtype, `captured: ${contents.layers}`]
    .map((fact) => plain(fact))
    .join(" · ");
  part.notice.textContent = plain(contents.notice ?? "");
  part.notice.hidden = contents.notice === null;
  fill(part.prompt, contents.prompts.map(({ number, text }) => (text ? `${number}: ${shortened(plain(text), 60)}` : number)));
  fill(part.group, contents.groups.map(({ title }) => title));
  part.group.closest("label").hidden = contents.groups.length === 1;
  part.prompt.addEventListener("change", () => chooseGroup(0));
  part.row.addEventListener("change", () => chooseGroup(part.row.selectedIndex));
  part.group.addEventListener("change", () => chooseGroup(chosen.row));
  for (const control of [part.scale, part.stretch, part.mask]) control.addEventListener("change", recolour);
  part["zoom-in"].addEventListener("click", () => map.zoom(1.4));
  part["zoom-out"].addEventListener("click", () => map.zoom(1 / 1.4));
  part.fit.addEventListener("click", () => map.fitWindow());
  map.scroller.addEventListener("keydown", moveCursor);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    Object.assign(pointer, { cursor: null, pinned: null });
    update();
  });
  chooseGroup(0);
}

function fill(select, texts) {
  const options = texts.map((text, at) => {
    const option = document.createElement("option");
    option.textContent = text;
    option.value = at;
    return option;
  });
  select.replaceChildren(...options);
}

// After the prompt, the row of the batch or the kind of picture has changed.
function chooseGroup(row) {
  const prompt = contents.prompts[part.prompt.selectedIndex];
  const group = contents.groups[part.group.selectedIndex];
  const entries = group.entries.filter((entry) => entry.prompts === null || entry.prompts.includes(prompt.number));
  fill(part.row, range(prompt.rows).map(String));
  part.row.selectedIndex = row;
  part.row.closest("label").hidden = prompt.rows === 1;
  Object.assign(chosen, { group, prompt: prompt.number, row });
  grid.show(group, entries, prompt.number, row);
  if (entries.length === 0) {
    say(`the run holds nothing of this kind for prompt ${prompt.number}`);
    return;
  }
  const same = entries.find((entry) => entry.number === chosen.entry?.number || entry.label === chosen.entry?.label);
  const entry = same ?? entries[0];
  const heads = group.rows === "heads" || entry.heads.length === 0 ? [null] : entry.heads;
  choose({ entry, head: heads.includes(chosen.head) ? chosen.head : heads[0] });
}

async function choose({ entry, head }, focus = false) {
  Object.assign(chosen, { entry, head });
  grid.choose(entry, head, focus);
  const number = ++asked;
  part.plot.setAttribute("aria-busy", "true");
  const { group, prompt, row } = chosen;
  try {
    const [tokens, block] = await Promise.all([
      source.ask("tokens", prompt, row),
      source.ask("block", entry, prompt, row, contents.embedded ? null : head),
    ]);
    if (number !== asked) return;
    const named = entry.reads ? tokens : UNNAMED;
    const matrix = matrixOf(block, group, head, named);
    const read = block.queries.reduce((most, query) => Math.max(most, query + 1), 0);
    if (named !== shown.tokens || read !== shown.read) {
      Object.assign(pointer, { cursor: null, pinned: null });
      text.show(named, read);
    }
    Object.assign(shown, { tokens: named, read, matrix });
    if (matrix.rows <= Math.max(pointer.pinned ?? 0, pointer.cursor?.row ?? 0)) {
      Object.assign(pointer, { cursor: null, pinned: null });
    }
    say("");
    const others = entry.reads ? "" : " This module reads a sequence of its own, whose tokens the run does not name.";
    part.note.textContent = group.note + others;
    part.plot.querySelector(".corner span").textContent = matrix.perHead ? "head ↓ query →" : "query ↓ key →";
    part.title.textContent = [plain(entry.label), head === null ? group.title : `head ${head}`].join(", ");
    part.size.textContent = `${matrix.rows} ${matrix.perHead ? "heads" : "queries"} × ${matrix.columns} ${
      matrix.perHead ? "queries" : "keys"
    }, ${entry.dtype}`;
    recolour();
  } catch (error) {
    if (number !== asked) return;
    say(error.message);
  } finally {
    if (number === asked) part.plot.setAttribute("aria-busy", "false");
  }
}

function say(message) {
  part.error.textContent = message;
  part.error.hidden = message === "";
  part.picture.hidden = message !== "";
}

function recolour() {
  const { matrix } = shown;
  if (matrix === null) return;
  const masked = part.mask.checked;
  const whole = matrix.unit.top ?? largest(matrix, false);
  shown.top = part.stretch.checked ? largest(matrix, masked) : whole;
  shown.codes = codesOf(matrix, part.scale.value, shown.top, masked);
  grid.masked(masked);
  drawLegend();
  map.show(matrix, shown.codes);
  update();
}

function drawLegend() {
  const context = part.ramp.getContext("2d");
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(PALETTE.subarray(FIRST, LAST + 1));
  context.putImageData(image, 0, 0);
  const ends = [0, 0.5, 1].map((at) => rounded(SCALES[part.scale.value].from(at) * shown.top));
  [part.low, part.middle, part.high].forEach((element, at) => (element.textContent = ends[at]));
  if (part.scale.value === "log" && shown.top > 0) part.low.textContent = `≤ ${ends[0]}`;
  part.unit.textContent = shown.matrix.unit.name;
  const broken = shown.codes.reduce((count, code) => count + (code === NOT_FINITE), 0);
  part.broken.textContent = `■ ${broken} ${broken === 1 ? "value is" : "values are"} NaN or infinite`;
  part.broken.hidden = broken === 0;
}

// What is pointed at, by mouse or keyboard: { row, column }, either of them -1 where it is none; or null.
function point(cursor, follow = false) {
  pointer.cursor = cursor;
  update(follow);
}

function pin(row) {
  pointer.pinned = row === pointer.pinned ? null : row;
  update();
}

function pointAtToken(position) {
  const { matrix } = shown;
  if (matrix === null) return;
  if (position === null) return point(null);
  const column = matrix.columnOf(position);
  if (matrix.perHead) return point({ row: pointer.pinned ?? -1, column }, true);
  return point(pointer.pinned === null ? { row: matrix.rowOf(position), column: -1 } : { row: pointer.pinned, column }, true);
}

function pinToken(position) {
  const { matrix } = shown;
  if (matrix === null || matrix.perHead) return;
  const row = matrix.rowOf(position);
  if (row >= 0) pin(row);
  pointAtToken(position);
}

function update(follow = false) {
  const { matrix } = shown;
  if (matrix === null) return;
  map.point(pointer.cursor, pointer.pinned, follow);
  const row = pointer.pinned ?? (pointer.cursor?.row >= 0 ? pointer.cursor.row : null);
  const marked = row === null || matrix.perHead ? null : matrix.rowName(row).position;
  const column = pointer.cursor?.column ?? -1;
  const pointed = column >= 0 ? matrix.columnName(column).position : null;
  const shareOf = (position) => {
    const at = matrix.columnOf(position);
    if (at < 0) return null;
    const code = shown.codes[row * matrix.columns + at];
    return code >= FIRST && code <= LAST ? (code - FIRST) / 255 : null;
  };
  text.shade(row === null ? null : shareOf, marked, pointed);
  read(row, column);
}

// The line that tells the exact value.
function read(row, column) {
  const { matrix } = shown;
  const inside = pointer.cursor !== null && pointer.cursor.row >= 0 ? pointer.cursor.row : row;
  const name = (found) => [found.position, found.text].filter((each) => each !== null).join(" ");
  part["read-row"].textContent = inside === null ? "" : shortened(name(matrix.rowName(inside)), 32);
  part["read-column"].textContent = column < 0 ? "" : shortened(name(matrix.columnName(column)), 32);
  part["read-row-kind"].textContent = inside === null || matrix.perHead ? "" : "query";
  part["read-column-kind"].textContent = column < 0 ? "" : matrix.perHead ? "query" : "key";
  part.arrow.textContent = inside === null || column < 0 ? "" : "→";
  let value = "";
  if (inside !== null && column >= 0) {
    const cell = inside * matrix.columns + column;
    value = matrix.hidden(cell) ?? exact(matrix.values[cell]);
    part.value.classList.toggle("hidden-value", matrix.hidden(cell) !== null);
  }
  part.value.textContent = value;
  part.hint.hidden = inside !== null || column >= 0;
}

function moveCursor(event) {
  const { matrix } = shown;
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (matrix === null) return;
  if (event.key === "+" || event.key === "-") map.zoom(event.key === "+" ? 1.4 : 1 / 1.4);
  else if ((event.key === "Enter" || event.key === " ") && pointer.cursor) pin(pointer.cursor.row);
  else if (step) {
    const within = (at, count) => Math.min(Math.max(at, 0), count - 1);
    const at = pointer.cursor;
    const row = at === null ? 0 : within(Math.max(at.row, 0) + step[0], matrix.rows);
    const column = at === null ? 0 : within(Math.max(at.column, 0) + step[1], matrix.columns);
    point({ row, column }, true);
  } else return;
  event.preventDefault();
}

start();
