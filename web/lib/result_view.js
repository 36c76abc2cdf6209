// What a run did, and what a loader recognised.

import { bytes, duration, isNumber, size, tiles } from "./format.js";
import { described, element } from "./dom.js";
import { meter, scaleOf } from "./meter.js";
import { rungName } from "./strings.js";

/** @typedef {import("./strings.js").Strings} Strings */

/** So many sentences are shown at once. */
const UNFOLDED = 3;

/** @param {any} run @param {Strings} t */
export function runView(run, t) {
  return element(
    "div",
    "view",
    element(
      "div",
      "head",
      element("span", "title", rungName(t, run.rung)),
      element("span", "aside", isNumber(run.seconds) && element("span", "number", duration(run.seconds)), ...badges(run, t)),
    ),
    factsLine(factsOf(run, t)),
    isNumber(run.device_bytes) && memory(run, t),
    run.retries > 0 && element("div", "warning", t.retries(run.retries)),
    ...sentences("sentences warning", run.events, t),
    ...sentences("sentences", run.notes, t),
  );
}

/** @param {any} vae @param {Strings} t */
export function loaderView(vae, t) {
  const candidates = Array.isArray(vae.candidates) ? vae.candidates : [];
  return element(
    "div",
    "view",
    element("div", "head", element("span", "title", String(vae.title ?? "")), vae.dtype && element("span", "aside", vae.dtype)),
    factsLine([vae.file, vae.layout]),
    ...sentences("sentences", vae.why, t),
    candidates.length > 1 && element("div", "warning", t.candidates(candidates.join(", "))),
  );
}

/** @param {any} run @param {Strings} t */
function badges(run, t) {
  const core = run.by === "comfyui";
  return [
    core && described(element("span", "badge", t.byComfyUI), t.byComfyUIHint),
    !core && run.exact === true && described(element("span", "badge good", t.exact), t.exactHint),
    run.exact === false && described(element("span", "badge warning", t.approximate), t.approximateHint),
  ];
}

/** @param {any} run @param {Strings} t */
function factsOf(run, t) {
  return [
    run.title,
    isNumber(run.width) && isNumber(run.height) && `${size(run.width, run.height)} px`,
    run.images > 1 && t.images(run.images),
    run.frames > 1 && t.frames(run.frames),
    Array.isArray(run.tiles) && withTitle(t.tiles(tiles(run.tiles)), t.tilesHint),
    run.dtype && run.device ? t.on(run.dtype, run.device) : run.dtype || run.device,
  ];
}

/** @param {any} run @param {Strings} t */
function memory(run, t) {
  const peaks = [
    t.predicted(bytes(run.device_bytes)),
    isNumber(run.measured_bytes) && t.measured(bytes(run.measured_bytes)),
    isNumber(run.limit_bytes) && t.limit(bytes(run.limit_bytes)),
  ].filter(Boolean);
  const elsewhere = [
    run.host_bytes > 0 && `${t.host} ${bytes(run.host_bytes)}`,
    run.disk_bytes > 0 && `${t.files} ${bytes(run.disk_bytes)}`,
  ];
  const scale = scaleOf([run.device_bytes, run.measured_bytes], run.limit_bytes);
  const lines = { limit: run.limit_bytes, mark: run.measured_bytes };
  return element(
    "div",
    "memory",
    // Without a limit there is nothing to measure a bar by.
    isNumber(run.limit_bytes) &&
      meter(t.memoryHint(peaks.join(", ")), scale, [{ bytes: run.device_bytes, kind: "device" }], lines),
    factsLine([...peaks, ...elsewhere]),
  );
}

/** Many sentences are folded: a run that was short of memory may have a retry for every pass.
 *  @param {string} classes @param {unknown} texts @param {Strings} t */
function sentences(classes, texts, t) {
  const told = Array.isArray(texts) ? texts.filter((text) => typeof text === "string" && text) : [];
  const list = (part) => part.length > 0 && element("ul", classes, ...part.map((text) => element("li", "", text)));
  const rest = told.slice(UNFOLDED);
  const folded = rest.length > 0 && element("details", "", element("summary", "", t.more(rest.length)), list(rest));
  return [list(told.slice(0, UNFOLDED)), folded];
}

/** @param {string} text @param {string} hint */
function withTitle(text, hint) {
  const made = element("span", "fact", text);
  made.title = hint;
  return made;
}

/** Facts side by side. Lines break between them; the style sheet puts a dot where they do not.
 *  @param {(string | HTMLElement | null | undefined | false)[]} facts */
export function factsLine(facts) {
  const shown = facts.filter(Boolean).map((fact) => (typeof fact === "string" ? element("span", "fact", fact) : fact));
  return shown.length > 0 && element("div", "facts", ...shown);
}
