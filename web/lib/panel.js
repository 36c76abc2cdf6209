// The panel of one node: a DOM widget that is there only while there is something to show.

import { element } from "./dom.js";
import { passOn } from "./passing.js";
import { planView } from "./plan_view.js";
import { ProgressView } from "./progress_view.js";
import { loaderView, runView } from "./result_view.js";

/** @typedef {import("./strings.js").Strings} Strings */
/** @typedef {{ shown: boolean, strings: Strings, canvas: HTMLElement }} Surroundings */

const NAME = "exact_vae_panel";

/** The frontend's widget for the picture that a node shows, on the classic canvas. */
const PICTURE = "$$canvas-image-preview";

/** Above and below a DOM widget on the classic canvas. */
const MARGIN = 10;

const VIEWS = { run: runView, loader: loaderView, plan: planView };

export class Panel {
  /** @param {any} node @param {keyof typeof VIEWS} kind of its results @param {() => Surroundings} surroundings */
  constructor(node, kind, surroundings) {
    this.node = node;
    this.kind = kind;
    this.surroundings = surroundings;
    /** The last result. @type {any} */
    this.summary = null;
    /** While the node runs. @type {ProgressView | null} */
    this.progress = null;
    /** @type {any} */
    this.widget = null;
    /** Of what the panel shows. */
    this.height = 0;
    /** Of the node, before the panel was there. */
    this.bareHeight = 0;
  }

  /** A result that is none, or another node's (ids are used again), is not shown. @param {any} summary */
  show(summary) {
    this.summary = summary?.kind === this.kind ? summary : null;
    this.progress = null;
    this.refresh();
  }

  /** @param {any} told */
  advance(told) {
    const { strings } = this.surroundings();
    const starting = !this.progress;
    this.progress ??= new ProgressView();
    this.progress.update(told, strings);
    if (starting) this.refresh();
  }

  endProgress() {
    this.progress = null;
    this.refresh();
  }

  /** Draws anew what is known, in the language and under the settings of now. */
  refresh() {
    const { shown, strings } = this.surroundings();
    if (!shown || !(this.summary || this.progress)) return this.#unmount();
    this.#mount();
    const result = this.summary && VIEWS[this.kind](this.summary, strings);
    // A result of the run before stays, paler, so that the node does not jump.
    result?.classList.toggle("exact-vae-stale", this.progress !== null);
    this.body.replaceChildren(...[this.progress?.element, result].filter(Boolean));
    this.#fit();
  }

  /** A saved workflow has the node's size without the panel. @param {any} saved */
  leaveOut(saved) {
    if (this.widget && saved?.size) saved.size = [saved.size[0], this.#heightWithout(this.#space())];
  }

  #mount() {
    if (this.widget) return;
    this.bareHeight = this.node.size[1];
    this.body = element("div", "body");
    const panel = element("div", "panel", this.body);
    passOn(panel, () => this.surroundings().canvas);
    this.widget = this.node.addDOMWidget(NAME, NAME, panel, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      getMinHeight: () => this.#space(),
      getMaxHeight: () => this.#space(),
    });
    this.widget.serialize = false;
    this.#moveAbovePicture();
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(this.body);
  }

  /** Where it is on a first run, also after one that was interrupted, which has left its picture. */
  #moveAbovePicture() {
    const { widgets } = this.node;
    const picture = widgets.findIndex(({ name }) => name === PICTURE);
    if (picture >= 0) widgets.splice(picture, 0, ...widgets.splice(widgets.indexOf(this.widget), 1));
  }

  #unmount() {
    if (!this.widget) return;
    this.observer.disconnect();
    const { widgets } = this.node;
    widgets.splice(widgets.indexOf(this.widget), 1);
    this.widget.onRemove?.();
    this.#giveBack(this.#space());
    this.widget = null;
    this.height = 0;
  }

  #fit() {
    // While the node is collapsed or out of sight nothing can be measured; the observer calls again when it is back.
    const height = this.widget ? this.body.offsetHeight : 0;
    if (height === 0 || height === this.height) return;
    const less = this.height - height;
    this.height = height;
    if (less > 0) this.#giveBack(less);
    // The frontend itself makes a node taller that is too small for its widgets.
    this.node.graph?.setDirtyCanvas?.(true, true);
  }

  /** What the widget takes of the node's height. */
  #space() {
    return this.height + 2 * MARGIN;
  }

  /** The node's height without so much of the panel, but never less than before there was one. @param {number} space */
  #heightWithout(space) {
    const height = this.node.size[1];
    return Math.min(height, Math.max(this.bareHeight, height - space));
  }

  /** @param {number} space */
  #giveBack(space) {
    this.node.setSize([this.node.size[0], this.#heightWithout(space)]);
    this.node.graph?.setDirtyCanvas?.(true, true);
  }
}
