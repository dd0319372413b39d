// Keeps the focus and the opened details when a view is rendered again.

const REACHED = "a[href], button, input, select, textarea, summary, [tabindex]";
const name = one => one.getAttribute("aria-label") ?? one.getAttribute("name") ?? (one.textContent.trim() || one.getAttribute("href"));
const alike = (root, one) => [...root.querySelectorAll(REACHED)].filter(other => other.tagName === one.tagName && name(other) === name(one));

/** Records the focus and the opened details of a view; returns a function that restores them in another view, which must be in the page. */
export function carry(before) {
  const at = before.contains(document.activeElement) ? document.activeElement : null;
  const opened = [...before.querySelectorAll("details[open] > summary")];
  const place = one => [one, alike(before, one).indexOf(one)];
  const [focused, summaries] = [at && place(at), opened.map(place)];
  const found = (after, [one, number]) => alike(after, one)[number] ?? null;
  return after => {
    for (const summary of summaries) found(after, summary)?.parentElement.setAttribute("open", "");
    if (focused) found(after, focused)?.focus({ preventScroll: true });
  };
}
