/** The API key. It stays in memory, or in the tab's session storage when the user asks for that. */
import { element } from "./element.js";

const STORED = "whisper-api-key";

export class Key {
  #section = element("key");
  #hint = element("key-hint");
  #field = element("key-value", HTMLInputElement);
  #keep = element("key-keep", HTMLInputElement);
  value = sessionStorage.getItem(STORED) ?? "";

  /** @param {() => void} onEntered called when the user has entered a key */
  constructor(onEntered) {
    element("key-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.value = this.#field.value.trim();
      if (this.#keep.checked) sessionStorage.setItem(STORED, this.value);
      else sessionStorage.removeItem(STORED);
      this.#field.value = "";
      this.#section.hidden = true;
      onEntered();
    });
  }

  /**
   * Ask for a key: there is none, or the server does not know it.
   * @param {string} [reason] why the last one was not accepted
   */
  ask(reason = "This server needs an API key. Its operator gives them out.") {
    this.value = "";
    sessionStorage.removeItem(STORED);
    this.#section.hidden = false;
    this.#hint.textContent = reason;
  }

  focus() {
    this.#field.focus();
  }
}
