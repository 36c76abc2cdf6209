import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Panel } from "../../web/lib/panel.js";
import { strings } from "../../web/lib/strings.js";
import { loader, run } from "./examples.mjs";
import { FakeResizeObserver, install } from "./fake_dom.mjs";

install();

/** A node as on the classic canvas, which grows when its widgets need it. */
class FakeNode {
  constructor() {
    this.size = [300, 100];
    this.widgets = [];
  }

  addDOMWidget(name, type, element, options) {
    const widget = { name, type, element, options, onRemove: () => (this.removed = true) };
    this.widgets.push(widget);
    return widget;
  }

  setSize(size) {
    this.size = size;
  }
}

let node, shown, panel;

beforeEach(() => {
  node = new FakeNode();
  shown = true;
  panel = new Panel(node, "run", () => ({ shown, strings: strings("en") }));
});

/** The browser has laid the panel out, and the canvas has made room for it. */
function laidOut(height) {
  panel.body.offsetHeight = height;
  FakeResizeObserver.all.at(-1).told();
  node.size = [300, Math.max(node.size[1], 100 + node.widgets[0].options.getMinHeight())];
}

test("a node without a result has no widget", () => {
  panel.refresh();
  panel.show(null);
  panel.show("done");
  panel.show(loader());
  assert.deepEqual(node.widgets, []);
});

test("a result is shown in a widget that is not saved", () => {
  panel.show(run());
  assert.equal(node.widgets.length, 1);
  assert.equal(node.widgets[0].serialize, false);
  assert.equal(node.widgets[0].options.serialize, false);
  assert.ok(panel.body.textContent.includes("streamed"));
  panel.show(run({ rung: "whole" }));
  assert.equal(node.widgets.length, 1);
  assert.ok(panel.body.textContent.includes("whole"));
});

test("the panel is above the picture that an interrupted run has left", () => {
  node.widgets.push({ name: "prompt" }, { name: "$$canvas-image-preview" });
  panel.show(run());
  assert.deepEqual(
    node.widgets.map(({ name }) => name),
    ["prompt", "exact_vae_panel", "$$canvas-image-preview"],
  );
});

test("a saved workflow has the size without the panel", () => {
  panel.show(run());
  laidOut(80);
  assert.equal(node.size[1], 200);
  const saved = { size: [...node.size] };
  panel.leaveOut(saved);
  assert.deepEqual(saved.size, [300, 100]);
  panel.leaveOut({});
});

test("switched off, the panel gives the room back, and on again it has its result", () => {
  panel.show(run());
  laidOut(80);
  shown = false;
  panel.refresh();
  assert.deepEqual([node.widgets, node.size, node.removed], [[], [300, 100], true]);
  shown = true;
  panel.refresh();
  assert.ok(panel.body.textContent.includes("streamed"));
});

test("room that the user has given the node stays", () => {
  node.size = [300, 400];
  panel.show(run());
  laidOut(80);
  shown = false;
  panel.refresh();
  assert.deepEqual(node.size, [300, 400]);
});

test("progress comes above the last result, and goes", () => {
  panel.show(run());
  laidOut(80);
  panel.advance({ done: 0.1, what: "whole" });
  laidOut(120);
  assert.equal(panel.body.of("progress").length, 1);
  assert.equal(panel.body.of("stale").length, 1);
  const bar = panel.progress.element;
  panel.advance({ done: 0.2, what: "whole" });
  assert.equal(panel.body.children[0], bar);
  panel.endProgress();
  laidOut(80);
  assert.equal(panel.body.of("progress").length, 0);
  assert.equal(panel.body.of("stale").length, 0);
  assert.deepEqual(node.size, [300, 200]);
});

test("progress without a result leaves nothing behind", () => {
  panel.advance({ done: 0.1 });
  laidOut(40);
  panel.endProgress();
  assert.deepEqual([node.widgets, node.size], [[], [300, 100]]);
});

test("a collapsed node, where nothing has a height, keeps its size", () => {
  panel.show(run());
  laidOut(80);
  panel.body.offsetHeight = 0;
  FakeResizeObserver.all.at(-1).told();
  assert.equal(node.widgets[0].options.getMinHeight(), 100);
});
