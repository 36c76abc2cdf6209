// What VAE Plan weighed: the picture with its tiles, and the memory of each rung.

import { bytes, isNumber, ratio, size, tiles } from "./format.js";
import { described, element, svg } from "./dom.js";
import { meter, scaleOf } from "./meter.js";
import { factsLine } from "./result_view.js";
import { rungName } from "./strings.js";
import { tileGrid } from "./tile_grid.js";

/** @typedef {import("./strings.js").Strings} Strings */

const BOX = { width: 300, height: 110 };

/** @param {any} plan @param {Strings} t */
export function planView(plan, t) {
  const rungs = Array.isArray(plan.rungs) ? plan.rungs : [];
  const sized = isNumber(plan.width) && isNumber(plan.height) && plan.width > 0 && plan.height > 0;
  const facts = [
    sized && `${size(plan.width, plan.height)} px`,
    plan.images > 1 && t.images(plan.images),
    plan.frames > 1 && t.frames(plan.frames),
    plan.device,
    rungs.length === 0 && isNumber(plan.limit_bytes) && t.limit(bytes(plan.limit_bytes)),
  ];
  const chosen = rungs.some((rung) => rung.chosen);
  return element(
    "div",
    "view",
    element("div", "head", element("span", "title", [plan.title, t[plan.direction]].filter(Boolean).join(", "))),
    factsLine(facts),
    plan.error && element("div", "error", String(plan.error)),
    sized && chosen && picture(plan, t),
    rungs.length > 0 && ladder(plan, rungs, t),
  );
}

/** @param {any} plan @param {Strings} t */
function picture({ width, height, grid_px: tile }, t) {
  const cut = Array.isArray(tile) && tile.length === 2 && tile.every((side) => isNumber(side) && side > 0);
  const grid = tileGrid(width, height, cut ? tile : null, BOX);
  const sides = cut ? [...new Set(tile)].join("×") : "";
  const pieces = grid.columns * grid.rows > 1 ? t.grid(grid.columns, grid.rows, sides) : t.oneTile;
  const drawing = svg(
    "svg",
    { class: "picture", viewBox: `0 0 ${grid.width + 2} ${grid.height + 2}`, width: grid.width + 2 },
    svg("rect", {
      class: grid.dense ? "sheet dense" : "sheet",
      x: 1,
      y: 1,
      width: grid.width,
      height: grid.height,
    }),
    svg("path", { class: "lines", d: linesOf(grid) }),
  );
  const words = t.gridHint(width, height, pieces);
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", words);
  drawing.append(svg("title", {}, words));
  return element("div", "sheet-of-tiles", drawing, element("div", "facts", pieces));
}

/** @param {ReturnType<typeof tileGrid>} grid */
function linesOf({ xs, ys, width, height }) {
  const down = xs.map((x) => `M${round(1 + x)} 1V${round(1 + height)}`);
  const across = ys.map((y) => `M1 ${round(1 + y)}H${round(1 + width)}`);
  return [...down, ...across].join("");
}

/** @param {number} x */
const round = (x) => +x.toFixed(2);

/** @param {any} plan @param {any[]} rungs @param {Strings} t */
function ladder(plan, rungs, t) {
  const amounts = rungs.flatMap((rung) => [rung.device_bytes, (rung.host_bytes ?? 0) + (rung.disk_bytes ?? 0)]);
  const scale = scaleOf(amounts, plan.limit_bytes);
  return element("div", "ladder", legend(plan, rungs, t), ...rungs.map((rung) => step(rung, scale, plan.limit_bytes, t)));
}

/** @param {any} plan @param {any[]} rungs @param {Strings} t */
function legend(plan, rungs, t) {
  const kinds = [
    ["device", t.device],
    rungs.some((rung) => rung.host_bytes > 0) && ["host", t.host],
    rungs.some((rung) => rung.disk_bytes > 0) && ["files", t.files],
    isNumber(plan.limit_bytes) && ["limit-swatch", t.limit(bytes(plan.limit_bytes))],
  ].filter(Boolean);
  return element("div", "legend", ...kinds.map(([kind, words]) => element("span", "fact", element("i", `swatch ${kind}`), words)));
}

/** @param {any} rung @param {number} scale @param {unknown} limit @param {Strings} t */
function step(rung, scale, limit, t) {
  const away = [
    { bytes: rung.host_bytes, kind: "host" },
    { bytes: rung.disk_bytes, kind: "files" },
  ];
  const state = rung.chosen ? t.chosen : rung.fits === false ? t.doesNotFit : "";
  const details = detailsOf(rung, t);
  const onDevice = isNumber(rung.device_bytes) && `${t.device} ${bytes(rung.device_bytes)}`;
  const words = `${rungName(t, rung.name)}: ${[state, onDevice, ...details].filter(Boolean).join(", ")}`;
  return element(
    "div",
    `step${rung.chosen ? " chosen" : ""}${rung.fits === false ? " too-big" : ""}`,
    element(
      "div",
      "head",
      element("span", "title", `${rung.chosen ? "✓ " : ""}${rungName(t, rung.name)}`),
      element(
        "span",
        "aside",
        rung.fits === false && element("span", "", t.doesNotFit),
        isNumber(rung.device_bytes) && element("span", "number", bytes(rung.device_bytes)),
      ),
    ),
    meter(words, scale, [{ bytes: rung.device_bytes, kind: "device" }], { limit }),
    (rung.host_bytes > 0 || rung.disk_bytes > 0) && thin(meter(words, scale, away)),
    // Of a rung that is out of the question the bar's tooltip tells enough.
    rung.fits !== false && factsLine(details),
  );
}

/** @param {any} rung @param {Strings} t */
function detailsOf(rung, t) {
  return [
    rung.host_bytes > 0 && `${t.host} ${bytes(rung.host_bytes)}`,
    rung.disk_bytes > 0 && `${t.files} ${bytes(rung.disk_bytes)}`,
    Array.isArray(rung.tiles) && t.tiles(tiles(rung.tiles)),
    isNumber(rung.cost) && t.cost(ratio(rung.cost)),
    rung.exact === false && t.approximate,
  ];
}

/** @param {HTMLElement} track */
function thin(track) {
  track.classList.add("exact-vae-thin");
  // It says what the bar above it says.
  track.setAttribute("aria-hidden", "true");
  return track;
}
