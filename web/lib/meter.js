// Bars of memory against a limit. A scale is one number: how many bytes the full width stands for.

import { clamp, isNumber } from "./format.js";
import { described, element } from "./dom.js";

/** A whole run may need a hundred times the limit. Beyond this many limits a bar is cut off, so that the others stay visible. */
const LIMITS_SHOWN = 3;

/** The bytes of the full width. @param {unknown[]} amounts @param {unknown} limit */
export function scaleOf(amounts, limit) {
  const most = Math.max(1, ...amounts.filter(isNumber));
  return isNumber(limit) && limit > 0 ? Math.max(limit, Math.min(most, LIMITS_SHOWN * limit)) : most;
}

/** @typedef {{ bytes: unknown, kind: string }} Part
 *  @param {string} words what the bar says @param {number} scale @param {Part[]} parts side by side
 *  @param {{ limit?: unknown, mark?: unknown }} [lines] */
export function meter(words, scale, parts, { limit, mark } = {}) {
  const track = element("div", "track");
  let start = 0;
  for (const { bytes, kind } of parts) {
    if (!isNumber(bytes) || bytes <= 0) continue;
    const fill = element("div", `fill ${kind}${start + bytes > scale ? " cut" : ""}`);
    place(fill, start / scale);
    fill.style.width = share(clamp((start + bytes) / scale) - clamp(start / scale));
    track.append(fill);
    start += bytes;
  }
  if (isNumber(mark)) track.append(place(element("div", "mark"), mark / scale));
  // A limit at the very end of the track is the track's end.
  if (isNumber(limit) && limit < scale) track.append(place(element("div", "limit"), limit / scale));
  return described(track, words, "img");
}

/** @template {HTMLElement} E @param {E} made @param {number} at @returns {E} */
function place(made, at) {
  made.style.left = share(clamp(at));
  return made;
}

/** @param {number} part */
const share = (part) => `${+(100 * part).toFixed(2)}%`;
