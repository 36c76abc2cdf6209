// A slim bar while a node runs. Changed in place, four times a second.

import { clamp, isNumber, percent, wholeSeconds } from "./format.js";
import { element } from "./dom.js";
import { rungName } from "./strings.js";

/** @typedef {import("./strings.js").Strings} Strings */

/** @param {any} told the event `exact_vae.progress` @param {Strings} t */
export function progressWords(told, t) {
  const share = isNumber(told.done) ? clamp(told.done) : 0;
  const left = isNumber(told.seconds_left) && told.seconds_left >= 0.5 ? t.left(wholeSeconds(told.seconds_left)) : "";
  return {
    share,
    rung: rungName(t, told.what) || t.running,
    frame: told.frames > 1 && isNumber(told.frame) ? t.frame(told.frame, told.frames) : "",
    done: [percent(share), left].filter(Boolean).join(" · "),
    pass: String(told.pass ?? ""),
  };
}

export class ProgressView {
  constructor() {
    this.rung = element("span", "title");
    this.done = element("span", "aside number");
    this.fill = element("div", "fill device");
    this.pass = element("div", "pass");
    this.element = element(
      "div",
      "progress",
      element("div", "head", this.rung, this.done),
      element("div", "track thin", this.fill),
      this.pass,
    );
    this.element.setAttribute("role", "progressbar");
    this.element.setAttribute("aria-valuemin", "0");
    this.element.setAttribute("aria-valuemax", "100");
  }

  /** @param {any} told @param {Strings} t */
  update(told, t) {
    const { share, rung, frame, done, pass } = progressWords(told, t);
    this.rung.textContent = rung;
    this.done.textContent = done;
    this.pass.textContent = [frame, pass].filter(Boolean).join(" · ");
    this.fill.style.width = `${+(100 * share).toFixed(1)}%`;
    this.element.title = [rung, frame, pass, done].filter(Boolean).join(" · ");
    this.element.setAttribute("aria-valuenow", String(Math.floor(100 * share)));
    this.element.setAttribute("aria-valuetext", this.element.title);
  }
}
