// As much of a document as the panel needs, so that its views can be tested without a browser.

class FakeElement {
  constructor(tag) {
    this.tag = tag;
    this.className = "";
    this.children = [];
    this.attributes = {};
    this.style = {};
    this.offsetHeight = 0;
    this.classList = {
      add: (name) => (this.className += ` ${name}`),
      toggle: (name, on) => (this.className = `${this.className.replace(` ${name}`, "")}${on ? ` ${name}` : ""}`),
    };
  }

  append(...children) {
    this.children.push(...children);
  }

  replaceChildren(...children) {
    this.children = children;
  }

  addEventListener() {}

  setAttribute(name, value) {
    this.attributes[name] = value;
    if (name === "class") this.className = value;
  }

  set title(value) {
    this.attributes.title = value;
  }

  get title() {
    return this.attributes.title ?? "";
  }

  set textContent(value) {
    this.children = [value];
  }

  get textContent() {
    return this.children.map((child) => (typeof child === "string" ? child : child.textContent)).join(" ");
  }

  /** This element and all below it. */
  *all() {
    yield this;
    for (const child of this.children) if (typeof child !== "string") yield* child.all();
  }

  /** Those of a class, named without the pack's prefix. */
  of(name) {
    return [...this.all()].filter((element) => element.className.split(" ").includes(`exact-vae-${name}`));
  }
}

export class FakeResizeObserver {
  static all = [];

  constructor(told) {
    this.told = told;
    FakeResizeObserver.all.push(this);
  }

  observe(element) {
    this.element = element;
  }

  disconnect() {
    this.element = null;
  }
}

export function install() {
  globalThis.document = {
    createElement: (tag) => new FakeElement(tag),
    createElementNS: (_, tag) => new FakeElement(tag),
  };
  globalThis.ResizeObserver = FakeResizeObserver;
}
