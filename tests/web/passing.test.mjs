import assert from "node:assert/strict";
import { test } from "node:test";

import { isForCanvas } from "../../web/lib/passing.js";

const CLASSIC = { closest: () => null };
const NODES_2 = { closest: (selector) => selector === "[data-node-id]" };
const of = (type, button, buttons, currentTarget = CLASSIC) => isForCanvas({ type, button, buttons, currentTarget });

test("the wheel and the middle and right buttons are for the canvas", () => {
  assert.ok(of("wheel", 0, 0));
  assert.ok(of("pointerdown", 1, 4));
  assert.ok(of("pointerdown", 2, 2));
  assert.ok(of("pointermove", -1, 4));
  assert.ok(of("pointerup", 1, 0));
});

test("the left button and bare moves are for the panel", () => {
  assert.ok(!of("pointerdown", 0, 1));
  assert.ok(!of("pointermove", -1, 1));
  assert.ok(!of("pointermove", -1, 0));
});

test("in Nodes 2.0 nothing is passed on", () => {
  assert.ok(!of("wheel", 0, 0, NODES_2));
});
