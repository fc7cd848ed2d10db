/**
 * An AudioWorklet: samples at the rate of the sound card → 16-bit samples at 24 kHz. Each new sample is the mean of those
 * that it replaces, a simple low-pass filter that is good enough for speech.
 */
const RATE = 24_000;
const BATCH = RATE / 10; // samples in a message

class Pcm extends AudioWorkletProcessor {
  #step = RATE / sampleRate;
  #batch = new Int16Array(BATCH);
  #filled = 0;
  #sum = 0;
  #count = 0;
  #phase = 0;

  /**
   * @param {Float32Array[][]} inputs
   * @returns {boolean} whether the worklet stays alive
   */
  process(inputs) {
    for (const sample of inputs[0][0] ?? []) {
      this.#sum += sample;
      this.#count += 1;
      this.#phase += this.#step;
      while (this.#phase >= 1) {
        this.#phase -= 1;
        this.#add(this.#sum / this.#count);
        if (this.#phase < 1) [this.#sum, this.#count] = [0, 0];
      }
    }
    return true;
  }

  /** @param {number} sample from -1 to 1 */
  #add(sample) {
    this.#batch[this.#filled++] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
    if (this.#filled < BATCH) return;
    this.port.postMessage(this.#batch.buffer, [this.#batch.buffer]);
    this.#batch = new Int16Array(BATCH);
    this.#filled = 0;
  }
}

registerProcessor("pcm", Pcm);
