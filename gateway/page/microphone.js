/** The microphone: permission, level, recordings, and samples for live captions. */
import { Refusal } from "./refusals.js";

const FORMATS = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];

/** An open microphone. */
export class Microphone {
  /** @param {MediaStream} stream */
  constructor(stream) {
    this.stream = stream;
    this.context = new AudioContext();
    this.source = this.context.createMediaStreamSource(stream);
    this.#analyser = this.context.createAnalyser();
    this.source.connect(this.#analyser);
    this.#samples = new Float32Array(this.#analyser.fftSize);
  }

  #analyser;
  #samples;

  /**
   * Ask the user for the microphone. Throws a Refusal.
   * @returns {Promise<Microphone>}
   */
  static async open() {
    if (!navigator.mediaDevices) {
      throw new Refusal(-1, "Browsers give the microphone only to pages at https:// or on localhost. Open this page at such an address.");
    }
    try {
      return new Microphone(await navigator.mediaDevices.getUserMedia({ audio: true }));
    } catch (error) {
      throw new Refusal(-1, reason(/** @type {Error} */ (error)));
    }
  }

  /** The loudness of the last moment, from 0 to 1. */
  get level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const power = this.#samples.reduce((sum, sample) => sum + sample * sample, 0) / this.#samples.length;
    return Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-9) / 5)); // -50 dB and less is 0
  }

  close() {
    for (const track of this.stream.getTracks()) track.stop();
    void this.context.close();
  }

  /** Begin a recording in the format of the browser. */
  record() {
    return new Recording(this.stream);
  }

  /**
   * Give the sound as 16-bit samples at 24 kHz, mono.
   * @param {(samples: ArrayBuffer) => void} onSamples called about ten times a second
   */
  async sample(onSamples) {
    try {
      await this.context.audioWorklet.addModule(new URL("./pcm.js", import.meta.url));
    } catch {
      if (this.context.state === "closed") return; // the microphone was closed meanwhile
      throw new Refusal(-1, "The browser cannot load the part that reads the microphone. Reload the page, then start again.");
    }
    const node = new AudioWorkletNode(this.context, "pcm", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = (event) => onSamples(event.data);
    this.source.connect(node);
  }
}

/** A recording under way. */
class Recording {
  /** @type {Blob[]} */
  #pieces = [];
  #recorder;

  /** @param {MediaStream} stream */
  constructor(stream) {
    const mimeType = FORMATS.find((format) => MediaRecorder.isTypeSupported(format));
    this.#recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    this.#recorder.ondataavailable = (event) => this.#pieces.push(event.data);
    this.#recorder.start(1000);
  }

  /**
   * End it.
   * @returns {Promise<File>}
   */
  finish() {
    return new Promise((resolve) => {
      this.#recorder.onstop = () => {
        const type = this.#recorder.mimeType.split(";")[0] || "audio/webm";
        const name = `recording ${new Date().toISOString().slice(0, 16).replace("T", " ").replace(":", ".")}.${type.split("/")[1]}`;
        resolve(new File(this.#pieces, name, { type }));
      };
      this.#recorder.stop();
    });
  }
}

/** @param {Error} error of getUserMedia */
function reason(error) {
  switch (error.name) {
    case "NotAllowedError":
      return "The browser does not let this page use the microphone. Allow it in the address bar, then start again.";
    case "NotFoundError":
      return "No microphone was found. Connect one, then start again.";
    case "NotReadableError":
      return "The microphone cannot be used. Close other programs that use it, then start again.";
    default:
      return `The microphone cannot be used (${error.name}).`;
  }
}
