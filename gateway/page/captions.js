/** Live captions: the microphone's sound to /v1/realtime, OpenAI's Realtime API for transcription, and text back. */
import { element } from "./element.js";
import { Refusal } from "./refusals.js";

/** @typedef {import("./words.js").Segment} Segment */
/** @typedef {{start: number, end: number, text: string, node: HTMLElement}} Turn one stretch of speech; times in seconds */

const FINISH_SECONDS = 15; // how long the last words may take after the end
const STATUS = new Map([
  ["missing_api_key", 401],
  ["invalid_api_key", 401],
  ["insufficient_quota", 429],
  ["rate_limit_exceeded", 429],
  ["too_many_sessions", 503],
  ["overloaded", 503],
]); // a WebSocket has no HTTP status: the one that a request would get, by the code of the error
const MOST_WAITING = 4 * 2 ** 20; // bytes that may wait to be sent: a minute of sound

export class Captions {
  #log = element("captions");
  #socket;
  /** @type {Map<string, Turn>} */
  #turns = new Map();
  /** @type {Set<string>} turns that are not finished */
  #open = new Set();
  #committed = false;
  #answered = false; // whether the server has answered the last commit
  #ready = false;
  #finish = () => {};
  #onEnd;

  /**
   * @param {{key: string, language: string, onEnd: (refusal?: Refusal) => void}} options `onEnd`: the session has ended
   *   by itself, with the reason
   */
  constructor({ key, language, onEnd }) {
    this.#onEnd = onEnd;
    this.#log.replaceChildren();
    this.#log.hidden = false;
    this.#log.lang = language;
    const address = new URL("v1/realtime?intent=transcription", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    // A browser cannot send the header Authorization with a WebSocket. This is OpenAI's own way around it.
    this.#socket = new WebSocket(address, ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])]);
    this.#socket.onopen = () => this.#begin(language);
    this.#socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    this.#socket.onclose = (event) => this.#closed(event);
  }

  /** What has been said, in order. */
  get segments() {
    const turns = [...this.#turns.values()].filter((turn) => turn.text.trim());
    return turns.map(({ start, end, text }) => ({ start, end: Math.max(start, end), text: text.trim() }));
  }

  /** @param {ArrayBuffer} samples 16-bit samples at 24 kHz, mono */
  send(samples) {
    if (!this.#ready || this.#committed) return;
    if (this.#socket.bufferedAmount > MOST_WAITING) return this.#end(new Refusal(0, "The network is too slow for live captions."));
    this.#event("input_audio_buffer.append", { audio: base64(samples) });
  }

  /** Stop, and wait for the last words. */
  async finish() {
    if (this.#socket.readyState === WebSocket.OPEN) {
      const finished = new Promise((resolve) => {
        this.#finish = () => resolve(undefined);
        setTimeout(resolve, FINISH_SECONDS * 1000);
      });
      this.#event("input_audio_buffer.commit");
      this.#committed = true;
      await finished;
    }
    this.#onEnd = () => {};
    this.#socket.close();
  }

  /** @param {string} language */
  #begin(language) {
    const transcription = { model: "whisper-1", ...(language ? { language } : {}) };
    const input = { format: { type: "audio/pcm", rate: 24_000 }, transcription, turn_detection: { type: "server_vad" } };
    this.#event("session.update", { session: { type: "transcription", audio: { input } } });
    this.#ready = true;
  }

  /**
   * @param {string} type
   * @param {object} [fields]
   */
  #event(type, fields = {}) {
    this.#socket.send(JSON.stringify({ type, ...fields }));
  }

  /** @param {any} event of the server */
  #take(event) {
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#turn(event.item_id).start = event.audio_start_ms / 1000;
        break;
      case "input_audio_buffer.speech_stopped":
        this.#turn(event.item_id).end = event.audio_end_ms / 1000;
        break;
      case "input_audio_buffer.committed":
        this.#turn(event.item_id);
        this.#answered = this.#committed;
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.#write(event.item_id, this.#turn(event.item_id).text + event.delta, false);
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.#write(event.item_id, event.transcript, true);
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.#write(event.item_id, "", true);
        break;
      case "error":
        if (event.error.code !== "input_audio_buffer_commit_empty") {
          return this.#end(Refusal.of(STATUS.get(event.error.code) ?? 400, JSON.stringify(event)));
        }
        this.#answered = true; // nothing was said since the last turn
    }
    if (this.#answered && !this.#open.size) this.#finish();
  }

  /** @param {string} id */
  #turn(id) {
    let turn = this.#turns.get(id);
    if (!turn) {
      const start = [...this.#turns.values()].at(-1)?.end ?? 0;
      turn = { start, end: start, text: "", node: document.createElement("p") };
      turn.node.dir = "auto";
      this.#turns.set(id, turn);
      this.#open.add(id);
    }
    return turn;
  }

  /**
   * @param {string} id
   * @param {string} text
   * @param {boolean} final
   */
  #write(id, text, final) {
    const turn = this.#turn(id);
    turn.text = text;
    turn.node.textContent = text.trim();
    turn.node.classList.toggle("partial", !final);
    if (final) this.#open.delete(id);
    if (!turn.node.isConnected && text.trim()) this.#log.append(turn.node);
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  /** @param {CloseEvent} event */
  #closed(event) {
    this.#finish();
    const message = this.#ready
      ? `The live captions ended${event.reason ? `: ${event.reason}` : ", because the connection broke"}.`
      : "The server did not begin live captions.";
    this.#end(new Refusal(0, message));
  }

  /** @param {Refusal} refusal */
  #end(refusal) {
    const onEnd = this.#onEnd;
    this.#onEnd = () => {};
    this.#socket.close();
    onEnd(refusal);
  }
}

/** @param {ArrayBuffer} samples */
function base64(samples) {
  return btoa(String.fromCharCode(...new Uint8Array(samples)));
}
