import assert from "node:assert/strict";
import { test } from "node:test";

import { tileGrid } from "../../web/lib/tile_grid.js";

const BOX = { width: 300, height: 100 };

test("the picture is drawn to scale and the last tiles are cut", () => {
  const grid = tileGrid(1000, 500, [400, 400], BOX);
  assert.deepEqual([grid.width, grid.height], [200, 100]);
  assert.deepEqual([grid.columns, grid.rows], [3, 2]);
  assert.deepEqual(grid.xs, [80, 160]);
  assert.deepEqual(grid.ys, [80]);
});

test("one piece has no lines", () => {
  for (const tile of [null, [1000, 1000]]) {
    const grid = tileGrid(1000, 500, tile, BOX);
    assert.deepEqual([grid.columns, grid.rows, grid.xs, grid.ys, grid.dense], [1, 1, [], [], false]);
  }
});

test("tiles as wide as the picture are rows", () => {
  const grid = tileGrid(1000, 500, [1000, 200], BOX);
  assert.deepEqual([grid.columns, grid.rows, grid.xs, grid.ys], [1, 3, [], [40, 80]]);
});

test("a very wide picture can be seen, and fits", () => {
  const grid = tileGrid(65536, 16, [8192, 8192], BOX);
  assert.equal(grid.width, 300);
  assert.equal(grid.height, 3);
  assert.equal(grid.xs.length, 7);
});

test("lines that would touch become a tint", () => {
  const grid = tileGrid(65536, 65536, [64, 64], BOX);
  assert.equal(grid.dense, true);
  assert.deepEqual([grid.columns, grid.rows], [1024, 1024]);
  assert.deepEqual([grid.xs, grid.ys], [[], []]);
});
