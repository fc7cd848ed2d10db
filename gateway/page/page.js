/** The page: connects what the user does with the server and with what is shown. */
import { Captions } from "./captions.js";
import { element } from "./element.js";
import { copy, save } from "./files.js";
import { Key } from "./key.js";
import { Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { Progress } from "./progress.js";
import { Refusal, advice } from "./refusals.js";
import { send } from "./request.js";
import { plain, srt, vtt } from "./subtitles.js";
import { connectTabs } from "./tabs.js";
import { clock } from "./times.js";
import { TranscriptView } from "./transcript.js";

/** @typedef {{title: string, recording?: File, url?: string}} Source what is to be transcribed */

const BCP_47 = new Map([["jw", "jv"]]); // where Whisper's code is not the language's tag
const progress = new Progress();
const transcript = new TranscriptView((seconds) => player.playFrom(seconds));
const player = new Player((seconds) => transcript.highlight(seconds));
const key = new Key(() => void useKey());

/** What is shown: the last reply, and the recording's name. */
let shown = { title: "", language: "", duration: 0, model: "" };
/** Whether the engine gives the times of words; known after the first request. */
let hasWordTimes = true;
let largest = Infinity; // bytes of an upload
let cancel = () => {};
let retry = () => {};
/** What is to be done as soon as there is a valid key. */
let waitsForKey = () => {};

/** Ask which model is served. Tells early when a key is needed or the server is not ready. Returns whether it is. */
async function greet() {
  try {
    const response = await fetch("v1/models", { headers: key.value ? { authorization: `Bearer ${key.value}` } : {} });
    if (!response.ok) throw Refusal.of(response.status, await response.text(), response.headers.get("retry-after"));
    const [model] = (await response.json()).data;
    largest = model.max_audio_bytes ?? Infinity;
    element("model").textContent = `Model: ${model.id}.`;
    forgive();
    return true;
  } catch (error) {
    refuse(error instanceof Refusal ? error : new Refusal(0, "The server cannot be reached."), () => void greet());
    return false;
  }
}

/** Try the key that was entered, and then what was waiting for it. */
async function useKey() {
  const waiting = waitsForKey;
  const accepted = await greet();
  waitsForKey = accepted ? () => {} : waiting;
  if (accepted) waiting();
}

/**
 * Say what went wrong and what helps.
 * @param {Refusal} refusal
 * @param {() => void} again what "Try again" does
 */
function refuse(refusal, again) {
  if (refusal.status === 401) {
    waitsForKey = again;
    key.ask(refusal.code === "missing_api_key" ? undefined : refusal.message);
    return key.focus();
  }
  element("failure").hidden = false;
  element("failure-message").textContent = refusal.message;
  element("failure-advice").textContent = advice(refusal);
  retry = again;
}

function forgive() {
  element("failure").hidden = true;
}

/**
 * Transcribe a recording. The transcript grows on the page.
 * @param {Source} source
 */
async function transcribe(source) {
  cancel();
  if (!mayReplace()) return;
  forgive();
  transcript.clear();
  element("warnings").hidden = true;
  if (source.recording) player.load(source.recording);
  else player.unload();
  element("transcript-heading").textContent = source.title;
  element("facts").textContent = "";
  if ((source.recording?.size ?? 0) > largest) {
    const megabytes = Number((largest / 2 ** 20).toPrecision(2));
    return refuse(new Refusal(413, `The file is larger than the ${megabytes} MB that the server takes.`), () => transcribe(source));
  }
  progress.begin(source.recording ? "Uploading" : "Fetching the recording");
  const fields = form(source);
  const request = send(fields, key.value, {
    onUpload: (sent, total) => void (source.recording && progress.uploaded(sent, total)),
    onSegment: (segment) => transcript.add(segment),
    onProgress: (seconds, duration) => progress.transcribed(seconds, duration),
  });
  cancel = request.cancel;
  try {
    show(source.title, await request.transcript, fields.get("task") === "translate");
  } catch (error) {
    if (cancel !== request.cancel) return; // another request has taken its place
    progress.end();
    if (!transcript.segments.length) player.unload();
    if (!(error instanceof Refusal)) return progress.announce("Cancelled");
    const refusal = error;
    if (refusal.param === "word_timestamps" && hasWordTimes) {
      hasWordTimes = false;
      return transcribe(source);
    }
    refuse(refusal, () => transcribe(source));
  }
}

/**
 * @param {Source} source
 */
function form(source) {
  const fields = new FormData(); // the options first: the server may read them before the recording has arrived
  for (const name of ["language", "task", "strategy"]) fields.append(name, element(name, HTMLSelectElement).value);
  fields.append("stream", "true");
  if (hasWordTimes) fields.append("word_timestamps", "true");
  if (source.recording) fields.append("file", source.recording);
  if (source.url) fields.append("url", source.url);
  return fields;
}

/**
 * Show a whole transcript.
 * @param {string} title
 * @param {import("./request.js").Transcript} reply
 * @param {boolean} [translated] whether its text is a translation into English
 */
function show(title, reply, translated = false) {
  const { segments, language, duration, model, warnings = [] } = reply;
  shown = { title, language, duration, model };
  progress.end();
  transcript.finish(segments, { language: translated ? "en" : (BCP_47.get(language) ?? language), playable: player.ready });
  const name = element("language", HTMLSelectElement).querySelector(`option[value="${CSS.escape(language)}"]`)?.textContent ?? "";
  element("facts").textContent = [clock(duration), language && name, model].filter(Boolean).join(" · ");
  element("warnings").replaceChildren(...warnings.map((warning) => Object.assign(document.createElement("li"), { textContent: warning })));
  element("warnings").hidden = warnings.length === 0;
  progress.announce(segments.length ? `The transcript is complete: ${segments.length} segments.` : "No speech was found.");
}

/** Whether the transcript on the page may be replaced: the user is asked when it has unsaved edits. */
function mayReplace() {
  return !transcript.edited || window.confirm("The edited transcript has not been saved. Replace it?");
}

function connectFiles() {
  const field = element("file", HTMLInputElement);
  field.addEventListener("change", () => {
    const [recording] = field.files ?? [];
    if (recording) void transcribe({ title: recording.name, recording });
    field.value = ""; // so that the same file can be chosen again
  });
  let depth = 0; // each element under the pointer sends its own events
  const mark = (/** @type {number} */ change) => document.body.classList.toggle("dragging", (depth += change) > 0);
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    const [recording] = event.dataTransfer?.files ?? [];
    if (recording) void transcribe({ title: recording.name, recording });
  });
}

function connectUrl() {
  element("url-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    const url = element("url", HTMLInputElement).value.trim();
    void transcribe({ title: url, url });
  });
}

/**
 * Show the level and the time of an open microphone until the returned function is called.
 * @param {Microphone} microphone
 * @param {string} name of the panel's elements
 */
function meter(microphone, name) {
  const [level, time] = [element(`${name}-level`, HTMLMeterElement), element(`${name}-clock`)];
  const began = performance.now();
  level.hidden = time.hidden = false;
  time.textContent = clock(0);
  const timer = setInterval(() => {
    level.value = microphone.level;
    time.textContent = clock((performance.now() - began) / 1000);
  }, 100);
  return () => {
    clearInterval(timer);
    level.hidden = time.hidden = true;
  };
}

function connectMicrophone() {
  const [button, discard] = [element("record", HTMLButtonElement), element("discard", HTMLButtonElement)];
  /** @type {((keep: boolean) => Promise<void>) | null} */
  let stop = null;

  const start = async () => {
    forgive();
    const microphone = await Microphone.open();
    const recording = microphone.record();
    const endMeter = meter(microphone, "record");
    button.textContent = "Stop and transcribe";
    discard.hidden = false;
    progress.announce("Recording");
    stop = async (keep) => {
      stop = null;
      endMeter();
      button.textContent = "Start recording";
      discard.hidden = true;
      button.focus();
      const file = await recording.finish();
      microphone.close();
      if (keep) await transcribe({ title: file.name, recording: file });
      else progress.announce("Discarded");
    };
  };
  button.addEventListener("click", () => void (stop ? stop(true) : guarded(button, start)));
  discard.addEventListener("click", () => void stop?.(false));
}

function connectCaptions() {
  const button = element("caption", HTMLButtonElement);
  /** @type {((refusal?: Refusal) => Promise<void>) | null} */
  let stop = null;

  const start = async () => {
    if (!mayReplace()) return;
    forgive();
    const microphone = await Microphone.open();
    const language = element("language", HTMLSelectElement).value;
    const captions = new Captions({ key: key.value, language, onEnd: (refusal) => void stop?.(refusal) });
    const endMeter = meter(microphone, "caption");
    const began = performance.now();
    button.textContent = "Stop";
    stop = async (refusal) => {
      stop = null;
      const duration = (performance.now() - began) / 1000;
      endMeter();
      microphone.close();
      button.disabled = true;
      button.textContent = "Waiting for the last words";
      await captions.finish();
      button.disabled = false;
      button.textContent = "Start captions";
      button.focus();
      if (captions.segments.length) keep(captions, language, duration);
      if (refusal) refuse(refusal, () => button.click());
    };
    await microphone.sample((samples) => captions.send(samples));
  };
  button.addEventListener("click", () => void (stop ? stop() : guarded(button, start)));
}

/**
 * Turn the captions into the transcript, to edit and download.
 * @param {Captions} captions
 * @param {string} language
 * @param {number} duration seconds
 */
function keep(captions, language, duration) {
  transcript.clear();
  player.unload();
  element("transcript-heading").textContent = "Live captions";
  const { segments } = captions;
  show("captions", { text: plain(segments), segments, language, duration, model: "" });
}

/**
 * Run what a button starts, once at a time, and show its Refusal.
 * @param {HTMLButtonElement} button
 * @param {() => Promise<void>} start
 */
async function guarded(button, start) {
  button.disabled = true;
  try {
    await start();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refuse(error, () => button.click());
  } finally {
    button.disabled = false;
  }
}

function connectResults() {
  element("copy").addEventListener("click", async () => {
    const copied = await copy(plain(transcript.segments));
    progress.announce(copied ? "Copied" : "The browser did not allow copying");
    element("copy").textContent = copied ? "Copied" : "Not allowed";
    setTimeout(() => (element("copy").textContent = "Copy"), 2000);
  });
  element("toolbar").addEventListener("click", (event) => {
    const format = event.target instanceof HTMLElement ? event.target.dataset.format : undefined;
    if (!format) return;
    const { title, ...about } = shown;
    const { segments } = transcript;
    const whole = () => JSON.stringify({ text: segments.map(({ text }) => text).join("").trim(), ...about, segments }, null, 2) + "\n";
    const name = (title.split(/[/\\]/).pop() || "transcript").replace(/\.\w{1,5}$/, "");
    const [type, content] = {
      txt: () => ["text/plain", plain(segments)],
      srt: () => ["application/x-subrip", srt(segments)],
      vtt: () => ["text/vtt", vtt(segments)],
      json: () => ["application/json", whole()],
    }[/** @type {"txt" | "srt" | "vtt" | "json"} */ (format)]();
    save(`${name}.${format}`, type, content);
    transcript.edited = false;
  });
  window.addEventListener("beforeunload", (event) => {
    if (transcript.edited) event.preventDefault();
  });
}

element("cancel").addEventListener("click", () => cancel());
element("retry").addEventListener("click", () => retry());
connectTabs(/** @type {HTMLElement} */ (document.querySelector('[role="tablist"]')));
connectFiles();
connectUrl();
connectMicrophone();
connectCaptions();
connectResults();
element("app").hidden = false;
void greet();
