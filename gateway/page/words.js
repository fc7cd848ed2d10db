/**
 * A word with the blank before it, and its times in seconds.
 * @typedef {{word: string, start: number, end: number, probability?: number}} Word
 * @typedef {{start: number, end: number, text: string, words?: Word[]}} Segment
 */

/**
 * The words of an edited text. Words that did not change keep their times; the changed ones between them share the time
 * of what they replace, in proportion to their lengths.
 * @param {Word[]} words the words before the edit, in order
 * @param {string} text
 * @param {number} start seconds; when the segment begins
 * @param {number} end seconds; when it ends
 * @returns {Word[]} joined, they are `text`
 */
export function retime(words, text, start, end) {
  let [first, last, from, to] = [0, words.length, 0, text.length];
  while (first < last && startsAt(text, words[first].word, from)) from += words[first++].word.length;
  while (last > first && to - words[last - 1].word.length >= from && text.slice(0, to).endsWith(words[last - 1].word)) {
    to -= words[--last].word.length;
  }
  const middle = text.slice(from, to).match(/\s*\S+(\s+$)?/g) ?? [];
  const begin = first < last ? words[first].start : first ? words[first - 1].end : start;
  const finish = first < last ? words[last - 1].end : last < words.length ? words[last].start : end;
  return [...words.slice(0, first), ...spread(middle, begin, Math.max(begin, finish)), ...words.slice(last)];
}

/**
 * Whether `text` has the whole word at this place, not only its beginning.
 * @param {string} text
 * @param {string} word
 * @param {number} place
 */
function startsAt(text, word, place) {
  const next = text.charAt(place + word.length);
  return text.startsWith(word, place) && (!/\w$/.test(word) || !/\w/.test(next));
}

/**
 * @param {string[]} texts
 * @param {number} begin
 * @param {number} finish
 * @returns {Word[]}
 */
function spread(texts, begin, finish) {
  const length = texts.join("").length;
  let passed = 0;
  return texts.map((word) => {
    const start = begin + ((finish - begin) * passed) / length;
    passed += word.length;
    return { word, start, end: begin + ((finish - begin) * passed) / length };
  });
}
