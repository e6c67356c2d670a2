// The grid of heads: a row for each layer, a button with a small picture for each head.

class HeadGrid {
  constructor(root, source, onChoose) {
    this.root = root;
    this.source = source;
    this.onChoose = onChoose;
    this.buttons = new Map();
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  // Shows the layers of a group that hold this prompt.
  show(group, entries, prompt, row) {
    this.observer?.disconnect();
    this.observer = new IntersectionObserver((seen) => this.#load(seen), { root: this.root });
    this.asked = { prompt, row };
    this.buttons.clear();
    this.lines = entries.map((entry) => {
      const line = document.createElement("div");
      line.className = "layer";
      line.setAttribute("role", "row");
      const name = document.createElement("span");
      name.className = "layer-name";
      name.setAttribute("role", "rowheader");
      name.textContent = shortened(plain(entry.label), 24);
      name.title = plain(entry.hook);
      const heads = group.rows === "heads" || entry.heads.length === 0 ? [null] : entry.heads;
      const cells = heads.map((head) => this.#button(group, entry, head));
      line.append(name, ...cells);
      line.entry = entry;
      return line;
    });
    const headers = this.#headers(group, entries);
    this.root.classList.toggle("numbered", headers.length > 0);
    const most = Math.max(1, ...this.lines.map((line) => line.children.length - 1));
    this.root.style.setProperty("--head-size", `${Math.max(22, Math.min(44, Math.floor(330 / most)))}px`);
    this.root.replaceChildren(...headers, ...this.lines);
    for (const line of this.lines) this.observer.observe(line);
  }

  choose(entry, head, focus = false) {
    for (const [key, button] of this.buttons) {
      const chosen = key === keyOf(entry, head);
      button.setAttribute("aria-pressed", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
      if (!chosen) continue;
      if (focus) button.focus();
      button.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }

  // A row with the numbers of the heads, where all layers have the same; else they stand on the buttons.
  #headers(group, entries) {
    const heads = entries[0]?.heads ?? [];
    const same = entries.every((entry) => entry.heads.join() === heads.join());
    if (group.rows === "heads" || heads.length === 0 || !same) return [];
    const line = document.createElement("div");
    line.className = "layer-heads";
    line.setAttribute("role", "row");
    const corner = document.createElement("span");
    corner.className = "layer-name";
    line.append(corner);
    for (const head of heads) {
      const number = document.createElement("span");
      number.setAttribute("role", "columnheader");
      number.textContent = head;
      line.append(number);
    }
    return [line];
  }

  #button(group, entry, head) {
    const cell = document.createElement("span");
    cell.setAttribute("role", "gridcell");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "head";
    button.tabIndex = -1;
    const name = head === null ? group.short : `head ${head}`;
    button.setAttribute("aria-label", `${plain(entry.label)}, ${name}`);
    button.title = `${plain(entry.label)}, ${name}`;
    const picture = document.createElement("canvas");
    picture.width = picture.height = 1;
    const number = document.createElement("span");
    number.className = "head-number";
    number.textContent = head === null ? "" : head;
    button.append(picture, number);
    button.choice = { entry, head };
    button.addEventListener("click", () => this.onChoose(entry, head, false));
    this.buttons.set(keyOf(entry, head), button);
    cell.append(button);
    return cell;
  }

  // The small pictures of a layer are asked for once it is seen.
  async #load(seen) {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      this.observer.unobserve(target);
      const { prompt, row } = this.asked;
      try {
        const found = await this.source.ask("thumbnails", target.entry, prompt, row);
        if (target.isConnected) this.#paint(target, found);
      } catch (error) {
        target.title = error.message;
        target.classList.add("failed");
      }
    }
  }

  masked(masked) {
    this.isMasked = masked;
    for (const line of this.lines ?? []) if (line.found) this.#paint(line, line.found);
  }

  #paint(line, found) {
    line.found = found;
    const [, count, height, width] = found.shape;
    [...line.querySelectorAll("canvas")].forEach((canvas, at) => {
      canvas.width = width;
      canvas.height = height;
      const context = canvas.getContext("2d");
      const image = context.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      const start = ((this.isMasked ? count : 0) + at) * width * height;
      for (let pixel = 0; pixel < pixels.length; pixel++) {
        const share = found.numbers[start + pixel]; // 0 … 253, 254: no finite number, 255: nothing there
        const code = share < 254 ? FIRST + Math.round((share / 253) * 255) : NOT_FINITE;
        pixels[pixel] = PALETTE[share === 255 ? BLANK : code];
      }
      context.putImageData(image, 0, 0);
    });
  }

  #move(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const ends = { Home: 0, End: Infinity }[event.key];
    const button = event.target.closest("button");
    if (!button || (!step && ends === undefined)) return;
    event.preventDefault();
    const line = button.closest(".layer");
    const across = [...line.querySelectorAll("button")];
    const [down, right] = step ?? [0, 0];
    const at = this.lines.indexOf(line) + down;
    if (at < 0 || at >= this.lines.length) return;
    const there = [...this.lines[at].querySelectorAll("button")];
    const column = ends ?? across.indexOf(button) + right;
    const { entry, head } = there[Math.min(Math.max(column, 0), there.length - 1)].choice;
    this.onChoose(entry, head, true);
  }
}

function keyOf(entry, head) {
  return `${entry.number} ${head}`;
}
