// Elements of the document: made and found in one line, with texts that never become markup.

/** Make an element: properties as the element has them, `data` for data-*, then its children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The element of an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A copy of a template's first element. */
export function fromTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

let given = 0;

/** Join each label of a copy with what follows it, which a template cannot do with ids. */
export function joinLabels(root) {
  for (const label of root.querySelectorAll("label[data-for]")) {
    const input = root.querySelector(`[name="${label.dataset.for}"]`);
    input.id = `given-${(given += 1)}`;
    label.htmlFor = input.id;
  }
}

/** Fill a select with options of texts, or of pairs of value and text. */
export function fillSelect(select, options, chosen) {
  const pairs = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value, textContent: text })));
  if (chosen !== undefined) select.value = chosen;
}

/** Let a file be saved under a name. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A number of seconds in words that are as exact as one needs. */
export function inWords(seconds) {
  if (seconds < 1) return "less than 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
