/** The transcript on the page: segments with their words, which can be played, highlighted and edited. */
import { element } from "./element.js";
import { clock } from "./times.js";
import { retime } from "./words.js";

/**
 * @typedef {import("./words.js").Word} Word
 * @typedef {import("./words.js").Segment} Segment
 * @typedef {{start: number, end: number, node: HTMLElement}} Spoken a word on the page
 */

const UNSURE = 0.5; // words with a lower probability are marked
const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 0, ArrowUp: 0, Home: 0, End: 0 };

export class TranscriptView {
  #section = element("transcript");
  #list = element("segments", HTMLOListElement);
  #edit = element("edit", HTMLButtonElement);
  #unsureHint = element("unsure-hint");
  /** @type {Segment[]} */
  #segments = [];
  /** @type {Spoken[]} in the order of the page; made again after each change */
  #words = [];
  /** @type {HTMLElement | null} */
  #spoken = null;
  #onJump;
  /** Whether the text was changed since it was last saved. */
  edited = false;

  /** @param {(seconds: number) => void} onJump called with the time of a word or a segment that the user has chosen */
  constructor(onJump) {
    this.#onJump = onJump;
    this.#list.addEventListener("click", (event) => this.#choose(event.target));
    this.#list.addEventListener("keydown", (event) => this.#press(event));
    this.#list.addEventListener("focusin", (event) => this.#rove(event.target));
    this.#list.addEventListener("input", () => (this.edited = true));
    this.#edit.addEventListener("click", () => this.#setEditing(!this.editing));
  }

  /** The segments, with the edits. */
  get segments() {
    if (this.editing) this.#readEdits();
    return this.#segments;
  }

  get editing() {
    return this.#edit.getAttribute("aria-pressed") === "true";
  }

  /** Forget the transcript, and hide it. */
  clear() {
    this.#section.hidden = true;
    this.#segments = [];
    this.#list.replaceChildren();
    this.#edit.setAttribute("aria-pressed", "false");
    this.#edit.disabled = true;
    this.#unsureHint.hidden = true;
    this.#index();
    this.edited = false;
  }

  /** @param {Segment} segment the next one of a transcript that grows */
  add(segment) {
    const first = this.#section.hidden;
    this.#section.hidden = false;
    this.#put(this.#segments.length, segment);
    this.#index();
    if (first) this.#section.scrollIntoView({ block: "nearest" });
  }

  /**
   * Show the whole transcript. What is on the page already stays as it is.
   * @param {Segment[]} segments
   * @param {{language?: string, playable?: boolean}} [about] `language`: of the text, as a BCP 47 tag
   */
  finish(segments, { language = "", playable = true } = {}) {
    this.#section.hidden = false;
    this.#list.classList.toggle("silent", !playable);
    this.#list.lang = language;
    segments.forEach((segment, place) => this.#put(place, segment));
    while (this.#segments.length > segments.length) {
      this.#segments.pop();
      this.#list.lastElementChild?.remove();
    }
    this.#edit.disabled = segments.length === 0;
    this.#index();
  }

  /**
   * Highlight the word that is heard.
   * @param {number} seconds
   */
  highlight(seconds) {
    const node = this.#wordAt(seconds)?.node ?? null;
    if (node === this.#spoken) return;
    this.#spoken?.classList.remove("spoken");
    node?.classList.add("spoken");
    this.#spoken = node;
    if (node && !this.#list.contains(document.activeElement)) node.scrollIntoView({ block: "nearest" });
  }

  /**
   * The last word that has begun, while it is spoken or until shortly after it.
   * @param {number} seconds
   */
  #wordAt(seconds) {
    let [low, high] = [0, this.#words.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#words[middle].start <= seconds) low = middle + 1;
      else high = middle;
    }
    const word = this.#words[low - 1];
    return word && seconds < word.end + 0.3 ? word : undefined;
  }

  /**
   * @param {number} place
   * @param {Segment} segment
   */
  #put(place, segment) {
    if (JSON.stringify(this.#segments[place]) === JSON.stringify(segment)) return;
    this.#segments[place] = segment;
    const item = document.createElement("li");
    const time = document.createElement("button");
    time.type = "button";
    time.className = "time";
    time.textContent = clock(segment.start);
    time.setAttribute("aria-label", `Play from ${clock(segment.start)}`);
    item.append(time, this.#paragraph(segment));
    const shown = this.#list.children[place];
    if (shown) shown.replaceWith(item);
    else this.#list.append(item);
  }

  /** @param {Segment} segment */
  #paragraph(segment) {
    const paragraph = document.createElement("p");
    paragraph.className = "words";
    paragraph.dir = "auto";
    for (const word of timed(segment)) {
      const span = document.createElement("span");
      span.className = "word";
      span.textContent = word.word.trim();
      span.dataset.start = String(word.start);
      span.dataset.end = String(word.end);
      span.tabIndex = -1;
      if ((word.probability ?? 1) < UNSURE) {
        span.classList.add("unsure");
        this.#unsureHint.hidden = false;
      }
      paragraph.append(/^\s/.test(word.word) && paragraph.hasChildNodes() ? " " : "", span);
    }
    return paragraph;
  }

  #index() {
    const nodes = /** @type {HTMLElement[]} */ ([...this.#list.querySelectorAll(".word")]);
    this.#words = nodes.map((node) => ({ start: Number(node.dataset.start), end: Number(node.dataset.end), node }));
    if (nodes.length && !this.#list.querySelector('.word[tabindex="0"]')) nodes[0].tabIndex = 0;
  }

  /** @param {EventTarget | null} target a word, or the time of a segment */
  #choose(target) {
    if (!(target instanceof HTMLElement)) return;
    if (target.matches(".word")) this.#onJump(Number(target.dataset.start));
    if (target.matches(".time")) {
      const item = /** @type {HTMLElement} */ (target.parentElement);
      this.#onJump(this.#segments[[...this.#list.children].indexOf(item)].start);
    }
  }

  /** Only one word is in the order of the tab key: the one that had the focus last. @param {EventTarget | null} target */
  #rove(target) {
    if (!(target instanceof HTMLElement) || !target.matches(".word")) return;
    for (const other of this.#list.querySelectorAll('.word[tabindex="0"]')) {
      if (other instanceof HTMLElement) other.tabIndex = -1;
      other.removeAttribute("role");
    }
    target.tabIndex = 0;
    target.setAttribute("role", "button");
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    if (!(event.target instanceof HTMLElement) || !event.target.matches(".word")) return;
    if (event.key === "Enter" || event.key === " ") this.#choose(event.target);
    else if (event.key in STEPS) this.#step(event.target, event.key);
    else return;
    event.preventDefault();
  }

  /**
   * Move the focus: left and right by a word, up and down to the first word of a segment, Home and End to the ends.
   * @param {HTMLElement} from
   * @param {string} key
   */
  #step(from, key) {
    const place = this.#words.findIndex((word) => word.node === from);
    const item = from.closest("li");
    const targets = {
      ArrowRight: this.#words[place + 1]?.node,
      ArrowLeft: this.#words[place - 1]?.node,
      ArrowDown: item?.nextElementSibling?.querySelector(".word"),
      ArrowUp: item?.previousElementSibling?.querySelector(".word"),
      Home: this.#words[0].node,
      End: this.#words[this.#words.length - 1].node,
    };
    const target = targets[/** @type {keyof typeof targets} */ (key)];
    if (target instanceof HTMLElement) target.focus();
  }

  /** @param {boolean} editing */
  #setEditing(editing) {
    if (!editing) this.#readEdits();
    this.#edit.setAttribute("aria-pressed", String(editing));
    [...this.#list.children].forEach((item, place) => {
      const segment = this.#segments[place];
      item.lastElementChild?.replaceWith(editing ? this.#field(segment) : this.#paragraph(segment));
    });
    this.#index();
    if (editing) this.#list.querySelector("textarea")?.focus();
  }

  /** @param {Segment} segment */
  #field(segment) {
    const field = document.createElement("textarea");
    field.value = segment.text.trim();
    field.dir = "auto";
    field.rows = Math.ceil(field.value.length / 60) || 1;
    field.setAttribute("aria-label", `Text at ${clock(segment.start)}`);
    return field;
  }

  #readEdits() {
    this.#list.querySelectorAll("textarea").forEach((field, place) => {
      const segment = this.#segments[place];
      if (field.value.trim() === segment.text.trim()) return;
      const blank = /^\s/.test(segment.text) ? " " : "";
      const text = blank + field.value.trim();
      const words = retime(timed(segment), text, segment.start, segment.end);
      this.#segments[place] = { ...segment, text, ...(segment.words ? { words } : {}) };
    });
  }
}

/**
 * The words of a segment, which make up its text. A segment without word times counts as one word at first.
 * @param {Segment} segment
 */
function timed(segment) {
  const words = segment.words ?? [];
  if (words.map((word) => word.word).join("") === segment.text) return words;
  return retime(words, segment.text, segment.start, segment.end);
}
