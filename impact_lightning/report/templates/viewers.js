"use strict";

/**
 * The viewers of the report. `Viewers` is the only global name; each of the following files adds one part to it.
 *
 * Names come from folders and files of the user: they reach the page as text nodes only, never as HTML.
 */
const Viewers = {
  /** What is shown for each kind of link: `feature`, `circuit`, `class`. */
  routes: {},

  /** Return what a section holds, or null. */
  data(name) {
    const script = document.getElementById(`data-${name}`);
    return script ? JSON.parse(script.textContent) : null;
  },

  /** Make an element; text becomes text, elements are put in, null is left out. */
  make(tag, attributes = {}, ...children) {
    return Viewers.fill(document.createElement(tag), attributes, children);
  },

  /** Make an element of a drawing. */
  draw(tag, attributes = {}, ...children) {
    return Viewers.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  },

  fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") {
        element.addEventListener(name, value);
      } else if (value === true) {
        element.setAttribute(name, "");
      } else if (value !== false && value !== null && value !== undefined) {
        element.setAttribute(name, value);
      }
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  },

  /** Return a link within the page, such as `#feature=dense/site/12`; parts may hold anything. */
  link(kind, ...parts) {
    return `#${kind}=${parts.map(encodeURIComponent).join("/")}`;
  },

  /** Return the kind and the parts of a link, or null if it is another one. */
  parse(hash) {
    const found = /^#(\w+)=(.*)$/.exec(hash);
    if (!found || !Object.hasOwn(Viewers.routes, found[1])) {
      return null;
    }
    try {
      return [found[1], found[2].split("/").map(decodeURIComponent)];
    } catch {
      return [found[1], []]; // a link that was cut off
    }
  },

  /** Return a number for people: four digits, a dash where it is not defined. */
  number(value) {
    if (value === null || value === undefined) {
      return "–";
    }
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) {
      return value.toExponential(2);
    }
    return String(Number(value.toPrecision(4)));
  },

  /** Return a labelled control. */
  field(label, control) {
    return Viewers.make("label", { class: "viewer-field" }, Viewers.make("span", {}, label), control);
  },

  /** Return a list to choose from, of [value, text] pairs. */
  choice(options, changed) {
    const select = Viewers.make("select", { change: () => changed(select.value) });
    Viewers.offer(select, options);
    return select;
  },

  offer(select, options) {
    select.replaceChildren(...options.map(([value, text]) => Viewers.make("option", { value }, text)));
  },

  /** Go to a link: also to the one in the address, of which the browser would say nothing. */
  go(target) {
    if (target === location.hash) {
      Viewers.follow();
    } else {
      location.hash = target;
    }
  },

  /** Follow the link in the address, if it is one of ours; say whether it was. */
  follow() {
    const found = Viewers.parse(location.hash);
    if (found) {
      Viewers.routes[found[0]](found[1]);
    }
    return found !== null;
  },
};
