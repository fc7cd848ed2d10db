/** Plays the recording and tells which moment is heard. */
import { element } from "./element.js";

export class Player {
  #section = element("player");
  #audio = element("audio", HTMLAudioElement);
  #speed = element("speed", HTMLSelectElement);
  #hint = element("player-hint");
  #address = "";

  /** @param {(seconds: number) => void} onTime called with the moment that is heard, at each frame while it plays */
  constructor(onTime) {
    const tell = () => onTime(this.#audio.currentTime);
    const frame = () => {
      tell();
      if (!this.#audio.paused) requestAnimationFrame(frame);
    };
    this.#audio.addEventListener("playing", frame);
    this.#audio.addEventListener("seeked", tell);
    this.#audio.addEventListener("timeupdate", tell); // a hidden page has no frames
    this.#audio.addEventListener("loadedmetadata", () => this.#findDuration());
    this.#audio.addEventListener("error", () => this.#refuse());
    this.#speed.addEventListener("change", () => this.#setSpeed());
  }

  /** Whether there is a recording that can be played. */
  get ready() {
    return Boolean(this.#address) && !this.#audio.error;
  }

  /** @param {Blob} recording */
  load(recording) {
    this.unload();
    this.#address = URL.createObjectURL(recording);
    this.#audio.src = this.#address;
    this.#setSpeed();
    this.#section.hidden = false;
  }

  /** Forget the recording. */
  unload() {
    this.#section.hidden = true;
    this.#hint.hidden = true;
    this.#audio.hidden = this.#speed.hidden = false;
    if (!this.#address) return;
    this.#audio.removeAttribute("src");
    this.#audio.load();
    URL.revokeObjectURL(this.#address);
    this.#address = "";
  }

  /** @param {number} seconds */
  playFrom(seconds) {
    if (!this.ready) return;
    this.#audio.currentTime = seconds;
    this.#audio.play().catch(() => {}); // another jump may interrupt it; an unplayable file is reported by its error event
  }

  #setSpeed() {
    this.#audio.playbackRate = this.#audio.defaultPlaybackRate = Number(this.#speed.value);
  }

  /** Recordings of a browser's microphone do not name their duration. A jump beyond the end makes the browser find it. */
  #findDuration() {
    if (Number.isFinite(this.#audio.duration)) return;
    this.#audio.addEventListener("durationchange", () => (this.#audio.currentTime = 0), { once: true });
    this.#audio.currentTime = Number.MAX_SAFE_INTEGER;
  }

  #refuse() {
    if (!this.#address) return;
    this.#audio.hidden = this.#speed.hidden = true;
    this.#hint.textContent = "This browser cannot play the format of the recording. The transcript is not affected.";
    this.#hint.hidden = false;
  }
}
