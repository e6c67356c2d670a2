// The tokens as text, shaded by what the chosen row of the matrix gives them.

class TokenText {
  constructor(root, onPoint, onPin) {
    this.root = root;
    this.onPoint = onPoint;
    this.onPin = onPin;
    this.tokens = [];
    const position = (event) => event.target.closest(".token")?.position ?? null;
    root.addEventListener("pointerover", (event) => this.onPoint(position(event)));
    root.addEventListener("pointerleave", () => this.onPoint(null));
    root.addEventListener("click", (event) => {
      const at = position(event);
      if (at !== null) this.onPin(at, false);
    });
    root.addEventListener("focusin", (event) => this.onPoint(position(event)));
    root.addEventListener("focusout", () => this.onPoint(null));
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  // `read`: how many of the tokens the model read; the last that it wrote is not among them.
  show(tokens, read) {
    const count = Math.max(read, tokens.known ? tokens.texts.length : 0);
    this.tokens = range(count).map((position) => {
      const token = document.createElement("span");
      token.className = "token";
      if (tokens.known && position >= tokens.prompt_tokens) token.classList.add("generated");
      if (position >= read) {
        token.classList.add("unread");
        token.title = "chosen last, never read by the model";
      }
      token.position = position;
      token.tabIndex = position === 0 ? 0 : -1;
      token.setAttribute("role", "button");
      token.textContent = tokens.known ? visible(tokens.texts[position] ?? "") : String(position);
      return token;
    });
    const pieces = [];
    for (const token of this.tokens) {
      pieces.push(token);
      if (token.textContent.endsWith("↵")) pieces.push(document.createElement("br"));
    }
    this.root.replaceChildren(...pieces);
    this.root.classList.toggle("numbers", !tokens.known);
  }

  // `shareOf(position)`: 0 … 1, or null for a token that has no value; `marked`: the token that looks.
  shade(shareOf, marked, pointed) {
    for (const token of this.tokens) {
      const share = shareOf === null ? null : shareOf(token.position);
      token.style.setProperty("--share", share === null ? "0" : share.toFixed(3));
      token.classList.toggle("marked", token.position === marked);
      token.classList.toggle("pointed", token.position === pointed && pointed !== marked);
      if (token.position === (pointed ?? marked)) keepInView(this.root, token);
      if (token.position === marked) token.setAttribute("aria-pressed", "true");
      else token.removeAttribute("aria-pressed");
    }
  }

  #move(event) {
    const at = event.target.closest(".token")?.position;
    if (at === undefined) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onPin(at, true);
      return;
    }
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.tokens.length - 1 }[event.key];
    if (next === undefined || !this.tokens[next]) return;
    event.preventDefault();
    this.tokens[at].tabIndex = -1;
    this.tokens[next].tabIndex = 0;
    this.tokens[next].focus();
  }
}

// Scrolls `root` alone: the page itself stays where it is.
function keepInView(root, token) {
  if (root.matches(":hover")) return; // what is pointed at must not move away
  const above = token.offsetTop - root.scrollTop;
  if (above < 0 || above + token.offsetHeight > root.clientHeight) root.scrollTop = token.offsetTop - root.clientHeight / 2;
}
