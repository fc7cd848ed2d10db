/** Segments → the text of a file. Edited text counts; the times are those of the segments. */
import { stamp } from "./times.js";

/** @typedef {import("./words.js").Segment} Segment */

const LEAST = 100; // milliseconds that a cue without duration is displayed

/**
 * Cues in order and without overlaps, each with a positive duration, in milliseconds. A cue without text is left out.
 * @param {Segment[]} segments
 */
export function cues(segments) {
  const visible = segments.filter((segment) => segment.text.trim()).sort((one, other) => one.start - other.start);
  let free = 0;
  return visible.map((segment, index) => {
    const start = Math.max(free, Math.round(segment.start * 1000));
    const next = index + 1 < visible.length ? Math.round(visible[index + 1].start * 1000) : Infinity;
    const end = Math.max(Math.min(Math.max(Math.round(segment.end * 1000), start + LEAST), next), start + 1);
    free = end;
    return { start, end, text: cueText(segment.text) };
  });
}

/** @param {Segment[]} segments */
export function srt(segments) {
  return cues(segments)
    .map(({ start, end, text }, index) => `${index + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${text}\n\n`)
    .join("");
}

/** @param {Segment[]} segments */
export function vtt(segments) {
  const escaped = (/** @type {string} */ text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `WEBVTT\n\n${cues(segments)
    .map(({ start, end, text }) => `${stamp(start, ".")} --> ${stamp(end, ".")}\n${escaped(text)}\n\n`)
    .join("")}`;
}

/**
 * A line for each segment.
 * @param {Segment[]} segments
 */
export function plain(segments) {
  const lines = segments.map((segment) => segment.text.trim()).filter(Boolean);
  return lines.join("\n") + "\n";
}

/**
 * The text without empty lines, which would end the cue, and without `-->`, which a parser would read as times.
 * @param {string} text
 */
function cueText(text) {
  return text
    .replace(/--+>/g, "->")
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter(Boolean)
    .join("\n");
}
