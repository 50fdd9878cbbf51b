"use strict";

/** The circuit viewer: which circuit, how much of it, and what is known of the node that is chosen. */
(() => {
  const FIRST = 300; // edges that are shown at first
  const LISTED = 40; // edges in a list before one asks for more

  Viewers.circuits = (root, data) => {
    const viewer = new Viewer(root, data);
    Viewers.circuitsOf = (name) => viewer.ofClass(name);
    Viewers.routes.circuit = (parts) => viewer.open(...parts);
  };

  class Viewer {
    constructor(root, data) {
      this.album = Viewers.albumOf(data);
      this.circuits = data.circuits.map((one) => ({ ...one, bytes: Viewers.bytes(one.maps) }));
      this.drawing = new Viewers.Drawing((place) => this.go(place));
      this.build(root);
      this.choose(0);
    }

    build(root) {
      const { make, field, choice } = Viewers;
      const models = [...new Set(this.circuits.map((one) => one.model))];
      this.model = choice(models.map((model) => [model, model]), (model) =>
        this.choose(this.circuits.findIndex((one) => one.model === model && one.name === this.of.name), model));
      this.name = choice([], (place) => this.choose(Number(place)));
      this.slider = make("input", { type: "range", min: "1", step: "1", input: () => this.limit() });
      this.residual = make("input", { type: "checkbox", checked: true, change: () => this.limit() });
      this.status = make("p", { role: "status", class: "viewer-status" });
      this.details = make("aside", { class: "details", "aria-live": "polite", "aria-label": "The chosen node" });
      const button = (text, label, act) => make("button", { type: "button", "aria-label": label, title: label, click: act }, text);
      const { drawing } = this;
      root.append(
        make("form", { class: "viewer-form", submit: (event) => event.preventDefault() },
          field("Model", this.model), field("Task", this.name), field("Edges shown, heaviest first", this.slider),
          make("label", { class: "viewer-check" }, this.residual, " residual stream"),
          make("span", { class: "viewer-zoom" }, button("+", "Enlarge", () => drawing.zoom(1.25)),
            button("−", "Make smaller", () => drawing.zoom(0.8)), button("all", "Show all of it", () => drawing.whole()))),
        this.status,
        make("div", { class: "circuit-room" }, make("div", {}, drawing.svg, make("p", { class: "small" }, key("plus"), "positive weight ", key("minus"), "negative weight; thicker is heavier. ",
          key("stream"), "residual stream. Drag or use the arrow keys to move; press + and −, or turn the wheel once the drawing",
          " has the focus, to enlarge; Tab goes to the nodes, arrow keys from node to node, Enter chooses one.")), this.details),
      );
    }

    /** Show a circuit; without one of that task, the first one of the model. */
    choose(place, model = null) {
      const which = place >= 0 ? place : this.circuits.findIndex((one) => one.model === model);
      this.of = this.circuits[which];
      this.model.value = this.of.model;
      const tasks = this.circuits.flatMap((one, own) => (one.model === this.of.model ? [[own, one.name]] : []));
      Viewers.offer(this.name, tasks);
      this.name.value = which;
      this.chosen = null;
      this.slider.max = String(this.of.edges.length);
      this.slider.value = String(Math.min(FIRST, this.of.edges.length));
      this.slider.disabled = this.of.edges.length < 2;
      this.drawing.show(this.of);
      this.drawing.mark(null);
      this.limit();
      this.detail();
    }

    limit() {
      const n = Math.min(Number(this.slider.value), this.of.edges.length);
      const [nodes, edges] = this.of.all;
      this.drawing.limit(n);
      this.drawing.strands.style.display = this.residual.checked ? "" : "none";
      const held = this.of.edges.length < edges ? ` (the page holds ${this.of.edges.length.toLocaleString("en")})` : "";
      const some = this.of.nodes.length < nodes ? `${this.of.nodes.length.toLocaleString("en")} of ` : "";
      this.status.textContent = `${n.toLocaleString("en")} of ${edges.toLocaleString("en")} edges are drawn${held},`
        + ` between ${some}${nodes.toLocaleString("en")} nodes`;
      this.slider.setAttribute("aria-valuetext", `${n} edges`);
    }

    /** Choose a node: the address says it, so that going back undoes it. */
    go(place) {
      Viewers.go(Viewers.link("circuit", this.of.model, this.of.name, this.of.nodes[place][0]));
    }

    /** Show what a link says: a circuit, perhaps a node of it. */
    open(model, name, id) {
      const which = this.circuits.findIndex((one) => one.model === model && one.name === name);
      if (which < 0) {
        this.status.textContent = `There is no circuit of ${model}, ${name} in this page.`;
        this.status.scrollIntoView({ block: "center" });
        return;
      }
      const held = this.drawing.svg.contains(document.activeElement);
      const reads = this.details.contains(document.activeElement);
      if (this.of !== this.circuits[which]) {
        this.choose(which);
      }
      const place = id === undefined ? -1 : this.of.nodes.findIndex((node) => String(node[0]) === id);
      this.chosen = place < 0 ? null : place;
      this.drawing.mark(this.chosen);
      this.detail();
      if (reads) { // the link that was followed is gone
        this.details.querySelector("h4")?.focus({ preventScroll: true });
      }
      if (!held) { // whoever clicks in the drawing keeps their place
        this.status.scrollIntoView({ block: "nearest" });
        this.details.scrollIntoView({ block: "nearest" });
      }
    }

    detail() {
      const { make } = Viewers;
      this.details.replaceChildren(...(this.chosen === null
        ? [make("p", { class: "small" }, "Choose a node to see what it responds to and what it is joined to.")]
        : this.node(this.chosen)));
    }

    node(place) {
      const { make, number } = Viewers;
      const [, name, site, channel, label, , , numbers] = this.of.nodes[place];
      const known = [["Site", site], ["Channel", String(channel)],
        ...Object.entries(numbers).map(([key, value]) => [key.replaceAll("_", " "), number(value)])];
      const into = this.of.edges.filter((edge) => edge[1] === place).map(([other, , weight]) => [other, weight]);
      const out = this.of.edges.filter((edge) => edge[0] === place).map(([, other, weight]) => [other, weight]);
      const ends = (lines, own, other) => lines.filter((line) => line[own] === place).map((line) => [line[other], null]);
      return [
        make("h4", { tabindex: "-1" }, name), label ? make("p", {}, label) : null,
        make("dl", { class: "numbers" }, known.map(([key, value]) =>
          make("div", {}, make("dt", {}, key), make("dd", {}, value)))),
        this.images(place),
        this.lines("Comes in from", into), this.lines("Goes out to", out),
        this.lines("Reads, by the residual stream, what is written by", ends(this.of.links, 1, 0)),
        this.lines("Is read, by the residual stream, by", ends(this.of.links, 0, 1)),
        this.lines("Is multiplied with", [...ends(this.of.products, 0, 1), ...ends(this.of.products, 1, 0)]),
      ].filter((part) => part !== null);
    }

    /** Return the strongest images of a node. */
    images(place) {
      const { make, number } = Viewers;
      const tops = this.of.tops[place];
      if (!tops) {
        return make("p", { class: "small" }, "No images of this node are in this page.");
      }
      const [pictures, values, constant, start, mapped] = tops;
      const size = this.of.grid ? this.of.grid[0] * this.of.grid[1] : 0;
      const strip = make("div", { class: "strip" }, pictures.map((picture, nth) => {
        const at = start + nth * size;
        const map = nth >= mapped ? null : { bytes: this.of.bytes.subarray(at, at + size), grid: this.of.grid };
        return this.album.show(picture, `value ${number(values[nth])}`, map);
      }));
      return make("div", {}, strip, make("p", { class: "small" },
        `Where it is farthest from ${number(constant)}, which replaces it where it is left out:`
        + ` ${values.map(number).join(", ")}.${mapped ? " The lighter a patch, the farther." : ""}`));
    }

    /** Return the other ends of some edges as links, the heaviest first. */
    lines(heading, ends) {
      const { make, link, number } = Viewers;
      if (!ends.length) {
        return null;
      }
      const items = ends.slice(0, LISTED).map(([other, weight]) => make("li", {},
        make("a", { href: link("circuit", this.of.model, this.of.name, this.of.nodes[other][0]) }, this.of.nodes[other][1]),
        weight === null ? null : make("span", { class: weight < 0 ? "minus" : "plus" }, ` ${weight < 0 ? "−" : "+"}${number(Math.abs(weight))}`)));
      const more = ends.length > LISTED ? make("p", { class: "small" }, `and ${ends.length - LISTED} lighter ones`) : null;
      return make("div", {}, make("h5", {}, `${heading} (${ends.length})`), make("ul", { class: "ends" }, items), more);
    }

    /** Return model and name of the circuits whose task is about a class. */
    ofClass(name) {
      return this.circuits.filter((one) => one.name === name || one.name.startsWith(`${name} or `)
        || one.name.startsWith(`${name} against `)).map((one) => [one.model, one.name]);
    }
  }

  function key(kind) {
    const { draw } = Viewers;
    return draw("svg", { class: "key", viewBox: "0 0 30 8", "aria-hidden": "true" },
      draw("path", { class: kind === "stream" ? "strand" : `edge ${kind}`, d: "M0,4H30", "stroke-width": 3 }));
  }
})();
