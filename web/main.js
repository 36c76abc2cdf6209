// The browser side of the pack: panels on its nodes, and two settings.
// ComfyUI imports every .js file under this folder, so this is the only one that may have side effects.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, findNode } from "./lib/graph.js";
import { Panel } from "./lib/panel.js";
import { strings } from "./lib/strings.js";

/** What each node's panel shows: the `kind` of the summaries that the server sends for it. */
const NODES = {
  ExactVAELoader: "loader",
  ExactVAEDecode: "run",
  ExactVAEEncode: "run",
  ExactVAEDecodeTiled: "run",
  ExactVAEEncodeTiled: "run",
  ExactVAEPlan: "plan",
  ExactVAEVideoDecode: "run",
  ExactVAEVideoEncode: "run",
};

const PANEL = "ExactVAE.Panel";
const PREVIEW = "ExactVAE.Preview";

/** @type {WeakMap<object, Panel>} */
const panels = new WeakMap();

/** Panels whose nodes run, and the ids that the server calls them by. @type {Map<Panel, string>} */
const running = new Map();

/** The setting `PANEL`. Its change is told before it can be read, and first of all before there is a graph. */
let shown = true;
let ready = false;

const rootGraph = () => app.rootGraph ?? app.graph;
const setting = (id) => app.extensionManager?.setting?.get(id);

function surroundings() {
  return { shown, strings: strings(setting("Comfy.Locale")), canvas: app.canvas.canvas };
}

function panelOf(id) {
  const node = findNode(rootGraph(), id);
  return node && panels.get(node);
}

function onPanelSetting(value) {
  shown = value !== false;
  if (!ready) return;
  for (const node of allNodes(rootGraph())) panels.get(node)?.refresh();
}

/** Has `then` called after a method of the node, with its arguments. */
function after(node, method, then) {
  const before = node[method];
  node[method] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}

function watch(node, kind) {
  const panel = new Panel(node, kind, surroundings);
  panels.set(node, panel);
  after(node, "onExecuted", (output) => {
    running.delete(panel);
    panel.show(output?.exact_vae?.[0]);
  });
  after(node, "onSerialize", (saved) => panel.leaveOut(saved));
}

function onProgress({ detail }) {
  const panel = panelOf(detail?.node);
  if (!panel) return;
  running.set(panel, String(detail.node));
  panel.advance(detail);
}

/** Ends the bars of all nodes but one. @param {unknown} [still] the id of the node that runs */
function endProgress(still) {
  for (const [panel, id] of running) {
    if (id === String(still)) continue;
    running.delete(panel);
    panel.endProgress();
  }
}

function listen() {
  api.addEventListener("exact_vae.progress", onProgress);
  api.addEventListener("executing", ({ detail }) => endProgress(detail));
  for (const end of ["execution_success", "execution_error", "execution_interrupted", "reconnecting"]) {
    api.addEventListener(end, () => endProgress());
  }
}

function addStyles() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./exact_vae.css", import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "ExactVAE",
  settings: [
    {
      id: PREVIEW,
      name: "Preview while running",
      tooltip: "Shows a coarse picture of the latents on the node, and then the finished tiles.",
      category: ["Exact VAE", "On the node", "Preview"],
      type: "boolean",
      defaultValue: true,
    },
    {
      id: PANEL,
      name: "Panel below a node",
      tooltip: "Shows how a run was done: memory, tiles, time, exact or approximate.",
      category: ["Exact VAE", "On the node", "Panel"],
      type: "boolean",
      defaultValue: true,
      onChange: onPanelSetting,
    },
  ],
  setup() {
    addStyles();
    listen();
    ready = true;
  },
  nodeCreated(node) {
    const kind = NODES[node.comfyClass ?? node.constructor?.comfyClass];
    if (kind) watch(node, kind);
  },
  // Undo and a change of tabs build the nodes anew, and then the frontend brings their last results back.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      const summary = output?.exact_vae?.[0];
      if (summary) panelOf(id)?.show(summary);
    }
  },
});
