/** What went wrong, and what the user can do about it. */

/** A request that failed. `status`: HTTP's; 0 when there was no reply; -1 when none was sent, as without a microphone. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {{code?: string, param?: string | null, retryAfter?: number}} [details] `retryAfter`: seconds
   */
  constructor(status, message, { code = "", param = null, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }

  /**
   * The refusal in a reply with OpenAI's error object. Proxies answer without one.
   * @param {number} status
   * @param {string} body
   * @param {string | null} retryAfter the header Retry-After
   */
  static of(status, body, retryAfter = null) {
    const seconds = Number(retryAfter) || 0;
    try {
      const { message, code, param } = JSON.parse(body).error;
      return new Refusal(status, sentence(message), { code, param, retryAfter: seconds });
    } catch {
      return new Refusal(status, `The server answered with the status ${status}.`, { retryAfter: seconds });
    }
  }
}

/**
 * What the user can do.
 * @param {Refusal} refusal
 */
export function advice(refusal) {
  const later = refusal.retryAfter ? `Try again in ${refusal.retryAfter} s.` : "Try again in a minute.";
  switch (refusal.status) {
    case -1:
      return ""; // the message says it
    case 0:
      return "Check that the server runs and that this device has a network, then try again.";
    case 400:
      return "Change what the message names, then try again.";
    case 403:
      return "Its operator decides what the server allows. A file from this device always works.";
    case 408:
      return "The network is too slow or was interrupted. Try again, or send a smaller file.";
    case 413:
      return "Send a shorter recording, or only its sound track: an MP3 or Opus file is much smaller than video or WAV.";
    case 415:
    case 422:
      return "Check that the file plays on this device. If it does, convert it to MP3, FLAC or WAV and send that.";
    case 429:
      return `The limit of this API key is reached. ${later}`;
    case 502:
    case 503:
    case 504:
      return `The server is busy, starting or stopping. ${later}`;
    default:
      return "Try again. If it fails again, its operator finds the reason in the server's log.";
  }
}

/** @param {string} text */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}
