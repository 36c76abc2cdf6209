import assert from "node:assert/strict";
import { test } from "node:test";

import { bytes, duration, percent, ratio, tiles, wholeSeconds } from "../../web/lib/format.js";

test("bytes have three digits and never four", () => {
  const GIB = 2 ** 30;
  assert.equal(bytes(0), "0 B");
  assert.equal(bytes(999), "999 B");
  assert.equal(bytes(1000), "0.98 KiB");
  assert.equal(bytes(290451488), "277 MiB");
  assert.equal(bytes(7.51 * GIB), "7.51 GiB");
  assert.equal(bytes(9.999 * GIB), "10.0 GiB");
  assert.equal(bytes(99.97 * GIB), "100 GiB");
  assert.equal(bytes(1023 * GIB), "1.00 TiB");
  assert.equal(bytes(5000 * 1024 * GIB), "5000 TiB");
});

test("times are as fine as they are worth", () => {
  assert.equal(duration(0.041), "0.04 s");
  assert.equal(duration(12.84), "12.8 s");
  assert.equal(duration(59.97), "1 min 00 s");
  assert.equal(duration(187.2), "3 min 07 s");
  assert.equal(duration(3723), "1 h 02 min");
  assert.equal(wholeSeconds(12.3), "12 s");
});

test("what is not done is not 100 %", () => {
  assert.equal(percent(0.9999), "99 %");
  assert.equal(percent(1), "100 %");
  assert.equal(percent(-1), "0 %");
});

test("edges of tiles are one figure where they are equal", () => {
  assert.equal(tiles([64, 512]), "64–512");
  assert.equal(tiles([64, 64]), "64");
});

test("ratios", () => {
  assert.equal(ratio(2.386), "2.39");
  assert.equal(ratio(12.4), "12");
});
