// Numbers as people read them. Nothing here depends on the language.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A count of bytes with three digits: 297427 → "290 KiB". @param {number} count */
export function bytes(count) {
  let value = count;
  let unit = 0;
  // 999.5 would be shown as "1000": the next unit reads better.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** 0.0412 → "0.04 s", 12.8 → "12.8 s", 187 → "3 min 07 s". @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  return wholeSeconds(seconds);
}

/** A time to come, which deserves no decimals: 12.3 → "12 s". @param {number} seconds */
export function wholeSeconds(seconds) {
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  const minutes = Math.floor(total / 60);
  if (minutes < 60) return `${minutes} min ${padded(total % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${padded(minutes % 60)} min`;
}

/** @param {number} n */
const padded = (n) => String(n).padStart(2, "0");

/** [64, 512] → "64–512", [64, 64] → "64". @param {[number, number]} edges */
export const tiles = ([least, most]) => (least === most ? `${least}` : `${least}–${most}`);

/** @param {number} width @param {number} height */
export const size = (width, height) => `${width}×${height}`;

/** 0.427 → "42 %"; 100 % is said only of what is done. @param {number} share */
export const percent = (share) => `${Math.floor(100 * clamp(share))} %`;

/** Into 0..1. @param {number} share */
export const clamp = (share) => Math.min(Math.max(share, 0), 1);

/** 2.386 → "2.39", 12.4 → "12". @param {number} ratio */
export const ratio = (ratio) => (ratio < 10 ? ratio.toFixed(2) : ratio.toFixed(0));

/** What a server of another version may have left out is not shown. @param {unknown} value @returns {value is number} */
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
