/** The API key. It stays in memory, or in the tab's session storage when the user asks for that. */
import { element } from "./element.js";

const STORED = "whisper-api-key";

export class Key {
  #section = element("key");
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

  /** Ask for a key: there is none, or the server does not know it. */
  ask() {
    this.value = "";
    sessionStorage.removeItem(STORED);
    this.#section.hidden = false;
  }

  focus() {
    this.#field.focus();
  }
}
