// On the classic canvas a DOM widget swallows what the pointer does above it. The panel is no control: zooming, panning and
// the node's menu are to work there as beside it. Nodes 2.0 sees to that itself.

const PASSED = ["wheel", "pointerdown", "pointermove", "pointerup"];

/** @param {HTMLElement} panel @param {() => HTMLElement} canvas */
export function passOn(panel, canvas) {
  for (const type of PASSED) {
    panel.addEventListener(type, (event) => isForCanvas(event) && pass(event, canvas()), { passive: false });
  }
}

/** The left button stays here: it selects the panel's text. @param {any} event */
export function isForCanvas(event) {
  if (event.currentTarget.closest("[data-node-id]")) return false;
  return event.type === "wheel" || event.button > 0 || event.buttons > 1;
}

/** @param {any} event @param {HTMLElement} canvas */
function pass(event, canvas) {
  event.preventDefault();
  event.stopPropagation();
  canvas.dispatchEvent(new event.constructor(event.type, event));
}
