/**
 * Tabs as in the ARIA Authoring Practices: arrow keys, Home and End move the focus and open the panel.
 * @param {HTMLElement} list with role="tablist"
 */
export function connectTabs(list) {
  const tabs = /** @type {HTMLButtonElement[]} */ ([...list.querySelectorAll('[role="tab"]')]);

  /** @param {HTMLButtonElement} chosen */
  const open = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      const panel = document.getElementById(tab.getAttribute("aria-controls") ?? "");
      if (panel) panel.hidden = tab !== chosen;
    }
  };

  list.addEventListener("click", (event) => {
    const tab = tabs.find((item) => item === event.target);
    if (tab) open(tab);
  });
  list.addEventListener("keydown", (event) => {
    const place = tabs.findIndex((item) => item === event.target);
    const targets = { ArrowRight: place + 1, ArrowLeft: place - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
    const next = targets[/** @type {keyof typeof targets} */ (event.key)];
    if (place < 0 || next === undefined) return;
    event.preventDefault();
    const tab = tabs[next % tabs.length];
    open(tab);
    tab.focus();
  });
}
