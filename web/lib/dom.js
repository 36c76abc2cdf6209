// Elements from parts. Text always goes in as text, so nothing that a server sends is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | null | undefined | false} Child */

/** @param {string} tag @param {string} classes without the pack's prefix @param {...Child} children */
export function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  made.className = prefixed(classes);
  made.append(...children.filter(Boolean));
  return made;
}

/** @param {string} tag @param {Record<string, string | number>} attributes @param {...Child} children */
export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, name === "class" ? prefixed(String(value)) : String(value));
  }
  made.append(...children.filter(Boolean));
  return made;
}

/** What an element shows by its looks, in words: for a pointer that rests on it and for screen readers.
 *  @template {Element} E @param {E} made @param {string} words @param {string} [role] @returns {E} */
export function described(made, words, role) {
  made.setAttribute("title", words);
  made.setAttribute("aria-label", words);
  if (role) made.setAttribute("role", role);
  return made;
}

/** @param {string} classes */
const prefixed = (classes) =>
  classes
    .split(" ")
    .filter(Boolean)
    .map((name) => `exact-vae-${name}`)
    .join(" ");
