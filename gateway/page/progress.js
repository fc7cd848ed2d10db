/** How far the upload and the transcription are, and how long they will still take. */
import { element } from "./element.js";
import { clock, span } from "./times.js";

const ESTIMATE_AFTER = 1.5; // seconds of measuring before the time left is worth showing
const ANNOUNCE_EVERY = 20; // seconds between two announcements for screen readers

export class Progress {
  #section = element("progress");
  #bar = element("progress-bar", HTMLProgressElement);
  #phase = element("progress-phase");
  #detail = element("progress-detail");
  #announcement = element("announcement");
  #began = 0;
  #announced = 0;

  /** @param {string} phase */
  begin(phase) {
    this.#section.hidden = false;
    this.#section.scrollIntoView();
    this.#enter(phase);
  }

  end() {
    this.#section.hidden = true;
  }

  /**
   * Tell screen readers.
   * @param {string} text
   */
  announce(text) {
    this.#announcement.textContent = text;
    this.#announced = performance.now();
  }

  /**
   * @param {number} sent bytes
   * @param {number} total bytes
   */
  uploaded(sent, total) {
    if (sent >= total) return this.#enter("Waiting for the server");
    const left = this.#left(sent, total);
    this.#show(sent / total, `${megabytes(sent)} of ${megabytes(total)} MB`, left);
  }

  /**
   * @param {number} seconds of the recording that are transcribed
   * @param {number | null} duration of the recording in seconds; null while it is unknown
   */
  transcribed(seconds, duration) {
    if (this.#phase.textContent !== "Transcribing") this.#enter("Transcribing");
    if (!duration) return this.#show(null, `${clock(seconds)} done`, null);
    this.#show(seconds / duration, `${clock(seconds)} of ${clock(duration)}`, this.#left(seconds, duration));
  }

  /** @param {string} phase */
  #enter(phase) {
    this.#phase.textContent = phase;
    this.#began = performance.now();
    this.#show(null, "", null);
    this.announce(phase);
  }

  /**
   * Seconds until the phase ends, by its mean speed so far; null while that is a guess.
   * @param {number} done
   * @param {number} total
   */
  #left(done, total) {
    const elapsed = (performance.now() - this.#began) / 1000;
    return done > 0 && elapsed >= ESTIMATE_AFTER ? (elapsed / done) * (total - done) : null;
  }

  /**
   * @param {number | null} share from 0 to 1; null: unknown
   * @param {string} done
   * @param {number | null} left seconds
   */
  #show(share, done, left) {
    if (share) this.#bar.value = Math.min(1, share);
    else this.#bar.removeAttribute("value");
    const remaining = left === null ? "" : `about ${span(left)} left`;
    this.#detail.textContent = [done, remaining].filter(Boolean).join(" · ");
    if (remaining && performance.now() - this.#announced > ANNOUNCE_EVERY * 1000) this.announce(`${this.#phase.textContent}: ${done}, ${remaining}`);
  }
}

/** @param {number} bytes */
function megabytes(bytes) {
  return (bytes / 2 ** 20).toFixed(1);
}
