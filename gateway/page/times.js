/**
 * Seconds as a clock: 1:04, or 1:02:03 from an hour on.
 * @param {number} seconds
 */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const tail = String(rest).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

/**
 * Seconds in words, for people: "8 s", "3 min", "1 h 5 min".
 * @param {number} seconds
 */
export function span(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/**
 * Milliseconds as the time of a subtitle: 00:01:04,250.
 * @param {number} milliseconds
 * @param {"," | "."} mark what stands before the milliseconds: a comma in SubRip, a point in WebVTT
 */
export function stamp(milliseconds, mark) {
  const pad = (/** @type {number} */ value, /** @type {number} */ width) => String(value).padStart(width, "0");
  const seconds = Math.floor(milliseconds / 1000);
  return `${pad(Math.floor(seconds / 3600), 2)}:${pad(Math.floor(seconds / 60) % 60, 2)}:${pad(seconds % 60, 2)}${mark}${pad(milliseconds % 1000, 3)}`;
}
