/** A recording on its way to the server, and its transcript on the way back. */
import { Refusal } from "./refusals.js";

/**
 * @typedef {import("./words.js").Segment} Segment
 * @typedef {{text: string, language: string, duration: number, model: string, segments: Segment[], warnings?: string[]}} Transcript
 * @typedef {{
 *   onUpload: (sent: number, total: number) => void,
 *   onSegment: (segment: Segment) => void,
 *   onProgress: (seconds: number, duration: number | null) => void,
 * }} Listeners
 */

const ROUTE = "predictions/whisper";

/**
 * Send a form and read the native stream. An XMLHttpRequest, because fetch does not report how much of a body is sent.
 * @param {FormData} form
 * @param {string} key the API key, or ""
 * @param {Listeners} listeners
 * @returns {{transcript: Promise<Transcript>, cancel: () => void}} `transcript` is rejected with a Refusal, or with an
 *   AbortError after `cancel`
 */
export function send(form, key, listeners) {
  const http = new XMLHttpRequest();
  const transcript = new Promise((/** @type {(reply: Transcript) => void} */ resolve, reject) => {
    const lines = new Lines();
    /** @param {string} line */
    const take = (line) => {
      const { type, progress, error, ...fields } = JSON.parse(line);
      if (type === "segment") listeners.onSegment(fields);
      if (progress) listeners.onProgress(progress.seconds, progress.duration);
      if (type === "transcript") resolve(fields);
      if (type === "error") reject(Refusal.of(500, line));
    };
    http.upload.onprogress = (event) => listeners.onUpload(event.loaded, event.total);
    http.onprogress = () => {
      if (http.status === 200) lines.of(http.responseText).forEach(take);
    };
    http.onload = () => {
      if (http.status !== 200) return reject(Refusal.of(http.status, http.responseText, http.getResponseHeader("retry-after")));
      lines.of(http.responseText).forEach(take);
      reject(new Refusal(0, "The reply ended before the transcript was complete.")); // without effect when it was
    };
    http.onerror = () => reject(new Refusal(0, "The server cannot be reached, or the connection broke."));
    http.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    http.open("POST", ROUTE);
    if (key) http.setRequestHeader("authorization", `Bearer ${key}`);
    http.send(form);
  });
  return { transcript, cancel: () => http.abort() };
}

/** The whole lines of a text that grows. */
class Lines {
  #read = 0;

  /** @param {string} text all of it so far; the lines that are new since the last call are returned */
  of(text) {
    const end = text.lastIndexOf("\n") + 1;
    const fresh = text.slice(this.#read, end);
    this.#read = Math.max(this.#read, end);
    return fresh.split("\n").filter((line) => line.trim());
  }
}
