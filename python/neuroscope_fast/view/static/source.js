// Where the page gets its numbers: out of itself, or from the server that it came from. Both give the same blocks.

const VISIBLE = { " ": "·", "\n": "↵", "\t": "⇥" };

// Text in which everything can be seen; it is only ever put into the page as text.
function visible(text) {
  if (text === "") return "∅";
  return text.replace(/[\s\p{C}]/gu, (each) => VISIBLE[each] ?? `\\u{${each.codePointAt(0).toString(16)}}`);
}

// Names and sentences: spaces stay, what cannot be seen or would turn the direction of writing does not.
function plain(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (each) => VISIBLE[each] ?? `\\u{${each.codePointAt(0).toString(16)}}`);
}

function shortened(text, limit) {
  const letters = [...text];
  return letters.length > limit ? letters.slice(0, limit - 1).join("") + "…" : text;
}

// A block: its length as uint32, a JSON header of that many bytes (padded so that what follows is aligned), numbers.
function decodeBlock(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const count = head.shape.reduce((product, size) => product * size, 1);
  const start = 4 + length;
  if (head.dtype === "uint8") return { ...head, numbers: new Uint8Array(buffer, start, count) };
  if (head.dtype === "float32") head.numbers = new Float32Array(buffer, start, count);
  else head.numbers = widened(new Uint16Array(buffer, start, count), head.dtype);
  if (head.indices) {
    const width = head.dtype === "float32" ? 4 : 2;
    head.indices = new Int32Array(buffer, start + Math.ceil((count * width) / 8) * 8, count);
  }
  return head;
}

function widened(stored, dtype) {
  const bits = new Uint32Array(stored.length);
  const floats = new Float32Array(bits.buffer);
  for (let at = 0; at < stored.length; at++) {
    if (dtype === "bfloat16") bits[at] = stored[at] << 16;
    else floats[at] = halfToFloat(stored[at]);
  }
  return floats;
}

function halfToFloat(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

class EmbeddedSource {
  constructor(contents) {
    this.contents = contents;
  }
  async tokens(prompt, row) {
    return this.contents.tokens[`${prompt}-${row}`];
  }
  async block(entry, prompt, row) {
    return this.#stored(`block-${entry.number}-${prompt}-${row}`);
  }
  async thumbnails(entry, prompt, row) {
    return this.#stored(`thumbnails-${entry.number}-${prompt}-${row}`);
  }
  #stored(name) {
    const text = atob(document.getElementById(name).textContent);
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    return decodeBlock(bytes.buffer);
  }
}

class ServerSource {
  async tokens(prompt, row) {
    return (await this.#get("tokens", { prompt, row })).json();
  }
  async block(entry, prompt, row, head) {
    const query = { hook: entry.hook, prompt, row };
    if (head !== null) query.head = head;
    return decodeBlock(await (await this.#get("pattern", query)).arrayBuffer());
  }
  async thumbnails(entry, prompt, row) {
    return decodeBlock(await (await this.#get("thumbnails", { hook: entry.hook, prompt, row })).arrayBuffer());
  }
  async #get(name, query) {
    let answer;
    try {
      answer = await fetch(`${name}?${new URLSearchParams(query)}`);
    } catch {
      throw new Error("the server does not answer: start `neuroscope-fast view` again");
    }
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return answer;
  }
}

// The last results, by what was asked for; of a question that failed nothing is kept.
class Remembered {
  constructor(source, most) {
    this.source = source;
    this.most = most;
    this.known = new Map();
  }
  ask(method, entry, ...rest) {
    const key = JSON.stringify([method, entry?.number ?? entry, ...rest]);
    const found = this.known.get(key) ?? this.source[method](entry, ...rest);
    this.known.delete(key);
    this.known.set(key, found);
    found.catch(() => this.known.delete(key));
    if (this.known.size > this.most) this.known.delete(this.known.keys().next().value);
    return found;
  }
}

// One head of a block as the matrix that the heat map shows.
function matrixOf(block, group, head, tokens) {
  const perHead = group.rows === "heads";
  const at = perHead || block.heads.length === 0 ? 0 : block.heads.indexOf(head);
  const [rows, width] = perHead ? block.shape : block.shape.slice(1);
  const numbers = block.numbers.subarray(at * rows * width, (at + 1) * rows * width);
  const indices = block.indices?.subarray(at * rows * width, (at + 1) * rows * width);
  const columns = indices ? block.keys : width;
  const queries = block.queries;
  const matrix = { rows, columns, values: numbers, perHead, unit: group.unit };
  const token = (position) => ({ position, text: tokens.known ? visible(tokens.texts[position] ?? "") : null });
  matrix.rowName = (row) => (perHead ? { position: null, text: `head ${block.heads[row]}` } : token(queries[row]));
  matrix.columnName = (column) => token(perHead ? queries[column] : column);
  matrix.rowOf = (position) => (perHead ? -1 : queries.indexOf(position));
  matrix.columnOf = (position) => (perHead ? queries.indexOf(position) : position < columns ? position : -1);
  const isLater = (cell) => !perHead && cell % columns > queries[Math.floor(cell / columns)];
  let known = null; // of the cells of a sparse matrix, those that are stored
  if (indices) {
    known = new Uint8Array(rows * columns);
    matrix.values = new Float32Array(rows * columns).fill(NaN);
    numbers.forEach((value, slot) => {
      if (indices[slot] < 0) return; // a key of padding
      const cell = Math.floor(slot / width) * columns + indices[slot];
      matrix.values[cell] = value;
      known[cell] = 1;
    });
  }
  const stored = (cell) => known === null || known[cell] === 1;
  matrix.shown = (cell) => stored(cell) && (matrix.values[cell] !== 0 || !isLater(cell));
  matrix.hidden = (cell) => {
    if (matrix.shown(cell)) return null;
    return stored(cell) ? "0, the key comes after the query" : "not stored, outside the largest weights of its query";
  };
  return matrix;
}
