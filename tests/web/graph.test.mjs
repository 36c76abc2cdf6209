import assert from "node:assert/strict";
import { test } from "node:test";

import { allNodes, findNode } from "../../web/lib/graph.js";

/** A graph that, like the frontend's, knows its nodes by the type of key that it was given. */
function graphOf(nodes, subgraphs = new Map()) {
  return { nodes, subgraphs, getNodeById: (id) => nodes.find((node) => node.id === id) };
}

const inner = graphOf([{ id: 3, name: "inner" }]);
const middle = graphOf([{ id: 7, subgraph: inner }]);
const root = graphOf(
  [{ id: 5, name: "outer" }, { id: 12, subgraph: middle }],
  new Map([["0000-aa", middle], ["0000-bb", inner]]),
);

test("plain ids, as numbers and as strings", () => {
  assert.equal(findNode(root, 5).name, "outer");
  assert.equal(findNode(root, "5").name, "outer");
  assert.equal(findNode(graphOf([{ id: "5", name: "newer" }]), "5").name, "newer");
});

test("paths through subgraphs, and the frontend's own records of them", () => {
  assert.equal(findNode(root, "12:7:3").name, "inner");
  assert.equal(findNode(root, "0000-bb:3").name, "inner");
});

test("ids of nowhere give null", () => {
  for (const id of ["99", "5:3", "12:99:3", "", null, undefined, {}]) assert.equal(findNode(root, id), null);
  assert.equal(findNode(undefined, "5"), null);
});

test("all nodes, those of subgraphs once each", () => {
  assert.deepEqual([...allNodes(root)].map((node) => node.id), [5, 12, 7, 3]);
  assert.deepEqual([...allNodes(undefined)], []);
});
