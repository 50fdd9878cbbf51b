"use strict";

/** The drawing of a circuit: columns by site; moved by dragging or arrow keys, enlarged by wheel, buttons or + and −. */
(() => {
  const [WIDE, RADIUS] = [90, 7]; // of a column, and of a node
  const [LOW, HIGH, SHAPE] = [9, 64, 0.6]; // of a row: as much as a drawing of this shape has room for
  const MARGIN = 30;
  const [HEAD, LEAN] = [74, 40]; // of the names above columns: their room in pixels, and their slope in degrees
  const STEP = 1.25; // by which one step enlarges
  const THICK = 5; // of the heaviest edge
  const { draw } = Viewers;

  Viewers.Drawing = class {
    /**
     * @param {(place: number) => void} choose What happens when a node is chosen.
     */
    constructor(choose) {
      this.choose = choose;
      this.svg = draw("svg", {
        class: "circuit", tabindex: "0", role: "group", "aria-label": "Circuit",
        keydown: (event) => this.key(event), pointerdown: (event) => this.drag(event),
      });
      this.svg.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      new ResizeObserver(() => this.box && this.look(this.box)).observe(this.svg);
    }

    /** Draw a circuit. */
    show(circuit) {
      this.circuit = circuit;
      const [xs, ys] = [5, 6].map((column) => circuit.nodes.map((node) => node[column]));
      const width = Math.max(0, ...xs) * WIDE + 2 * MARGIN;
      this.high = Math.min(HIGH, Math.max(LOW, (SHAPE * width - 2 * MARGIN) / Math.max(1, ...ys)));
      this.radius = Math.min(RADIUS, 0.42 * this.high);
      this.size = [width, Math.max(0, ...ys) * this.high + 2 * MARGIN];
      const heaviest = Math.max(...circuit.edges.map((edge) => Math.abs(edge[2])), 1e-30);
      this.edges = circuit.edges.map((edge) => this.edge(edge, Math.abs(edge[2]) / heaviest));
      this.nodes = circuit.nodes.map((node, place) => this.node(node, place));
      this.strands = draw("g", { class: "strands" }, circuit.strands.map(([ax, ay, bx, by]) =>
        draw("path", { d: this.path(this.at(ax, ay), this.at(bx, by)) })));
      this.svg.replaceChildren(this.strands, draw("g", {}, [...this.edges].reverse()), draw("g", {}, this.nodes), this.heads = this.names());
      this.svg.setAttribute("aria-label",
        `Circuit of ${circuit.model}, ${circuit.name}: arrow keys move it, + and − enlarge it, Tab goes to its nodes`);
      this.whole();
      this.reach(0);
    }

    at(x, y) {
      return [MARGIN + x * WIDE, MARGIN + y * this.high];
    }

    place(node) {
      return this.at(this.circuit.nodes[node][5], this.circuit.nodes[node][6]);
    }

    path([ax, ay], [bx, by]) {
      const bend = Math.max(12, (bx - ax) / 2);
      return `M${ax},${ay}C${ax + bend},${ay} ${bx - bend},${by} ${bx},${by}`;
    }

    edge([source, target, weight], share) {
      const { number } = Viewers;
      const d = this.path(this.place(source), this.place(target));
      const title = `${this.circuit.nodes[source][1]} → ${this.circuit.nodes[target][1]}: ${number(weight)}`;
      return draw("path", { class: `edge ${weight < 0 ? "minus" : "plus"}`, d, "stroke-width": (0.4 + share * THICK).toFixed(2) },
        draw("title", {}, title));
    }

    node([, name, , , label], place) {
      const [x, y] = this.place(place);
      return draw("g", {
        class: "node", role: "button", tabindex: "-1", "aria-label": label ? `${name}: ${label}` : name,
        transform: `translate(${x},${y})`, "data-place": place,
        click: () => this.choose(place), focus: () => this.reach(place),
      }, draw("circle", { r: this.radius }), draw("title", {}, label ? `${name}: ${label}` : name));
    }

    /** Return the names of the sites, for above their columns. */
    names() {
      return draw("g", { class: "heads", "aria-hidden": "true" }, this.circuit.columns.map(([, name]) => draw("text", {}, name)));
    }

    /** Show the heaviest edges, and fade nodes that have none of them. */
    limit(n) {
      const busy = new Set();
      this.edges.forEach((edge, place) => {
        edge.classList.toggle("light", place >= n);
        if (place < n) {
          busy.add(this.circuit.edges[place][0]).add(this.circuit.edges[place][1]);
        }
      });
      this.nodes.forEach((node, place) => node.classList.toggle("idle", !busy.has(place)));
    }

    /** Mark a node and its edges; `null` marks none. */
    mark(chosen) {
      this.svg.classList.toggle("marked", chosen !== null);
      const near = new Set([chosen]);
      this.edges.forEach((edge, place) => {
        const [source, target] = this.circuit.edges[place];
        const own = source === chosen || target === chosen;
        edge.classList.toggle("own", own);
        if (own) {
          near.add(source).add(target);
        }
      });
      this.nodes.forEach((node, place) => {
        node.classList.toggle("chosen", place === chosen);
        node.classList.toggle("near", near.has(place));
        node.setAttribute("aria-pressed", String(place === chosen));
      });
      if (chosen !== null) {
        this.reach(chosen);
        this.bring(chosen);
      }
    }

    /** Let Tab reach one node; from there, arrow keys go to the others. */
    reach(place) {
      this.nodes.forEach((node, other) => node.setAttribute("tabindex", other === place ? "0" : "-1"));
    }

    // ---------------------------------------------------------------------------------------------- where one looks

    look(box) {
      this.box = box;
      this.svg.setAttribute("viewBox", box.map((value) => value.toFixed(2)).join(" "));
      // names of columns stay at the top and keep their size, wherever one looks
      const unit = this.unit(box);
      const top = box[1] + box[3] / 2 - (this.svg.clientHeight / 2 - HEAD) * unit;
      this.heads.setAttribute("font-size", 11 * unit);
      this.circuit.columns.forEach(([x], place) =>
        this.heads.children[place].setAttribute("transform", `translate(${this.at(x, 0)[0]},${top}) rotate(${-LEAN})`));
    }

    /** Look at all of the drawing, and leave room for the names above it. */
    whole() {
      const [w, h] = this.size;
      const room = HEAD * this.unit([0, 0, w, h + HEAD]);
      this.look([0, -room, w + room / 2, h + room]); // names lean to the right
    }

    move(right, down) {
      const [x, y, w, h] = this.box;
      this.look([x + right * w, y + down * h, w, h]);
    }

    /** Enlarge by a factor around a point of the drawing, or around its middle. */
    zoom(factor, point = null) {
      const [x, y, w, h] = this.box;
      const [px, py] = point ?? [x + w / 2, y + h / 2];
      const most = Math.max(...this.size);
      const by = Math.min(Math.max(factor, w / (4 * most)), w / 60);
      this.look([px - (px - x) / by, py - (py - y) / by, w / by, h / by]);
    }

    /** Move the drawing so that a node is in it. */
    bring(place) {
      const [px, py] = this.place(place);
      const [x, y, w, h] = this.box;
      if (px < x || py < y || px > x + w || py > y + h) {
        this.look([px - w / 2, py - h / 2, w, h]);
      }
    }

    /** Return the units of the drawing to one pixel of the screen. */
    unit(box = this.box) {
      return Math.max(box[2] / (this.svg.clientWidth || box[2]), box[3] / (this.svg.clientHeight || box[3]));
    }

    point(event) {
      const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
      return [spot.x, spot.y];
    }

    /** Enlarge by the wheel, but only where it is meant: else the page could not be scrolled past the drawing. */
    wheel(event) {
      if (event.ctrlKey || this.svg.contains(document.activeElement)) {
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? STEP : 1 / STEP, this.point(event));
      }
    }

    drag(event) {
      if (event.button !== 0 || event.target.closest(".node")) {
        return;
      }
      const [start, unit, box] = [[event.clientX, event.clientY], this.unit(), this.box];
      const move = (now) =>
        this.look([box[0] - (now.clientX - start[0]) * unit, box[1] - (now.clientY - start[1]) * unit, box[2], box[3]]);
      const end = () => {
        this.svg.removeEventListener("pointermove", move);
        this.svg.classList.remove("dragged");
      };
      this.svg.setPointerCapture(event.pointerId);
      this.svg.classList.add("dragged");
      this.svg.addEventListener("pointermove", move);
      this.svg.addEventListener("pointerup", end, { once: true });
      this.svg.addEventListener("pointercancel", end, { once: true });
    }

    key(event) {
      if (event.altKey || event.ctrlKey || event.metaKey) {
        return;
      }
      const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const node = event.target.closest(".node");
      if (arrow && node) {
        this.step(Number(node.dataset.place), ...arrow);
      } else if (arrow) {
        this.move(arrow[0] / 10, arrow[1] / 10);
      } else if (event.key === "+" || event.key === "=") {
        this.zoom(STEP);
      } else if (event.key === "-") {
        this.zoom(1 / STEP);
      } else if (event.key === "0") {
        this.whole();
      } else if (node && (event.key === "Enter" || event.key === " ")) {
        this.choose(Number(node.dataset.place));
      } else {
        return;
      }
      event.preventDefault();
    }

    /** Go from a node to the nearest one in a direction. */
    step(from, right, down) {
      const { nodes } = this.circuit;
      const away = ([, , , , , x, y]) => [x - nodes[from][5], y - nodes[from][6]];
      let [best, least] = [null, Infinity];
      nodes.forEach((node, place) => {
        const [dx, dy] = away(node);
        const along = right * dx + down * dy;
        const aside = Math.abs(right * dy) + Math.abs(down * dx) * 20; // up and down stay in the column
        if (along > 0.01 && along * (right ? 5 : 1) + aside < least) {
          [best, least] = [place, along * (right ? 5 : 1) + aside];
        }
      });
      if (best !== null) {
        this.nodes[best].focus({ preventScroll: true });
        this.bring(best);
      }
    }
  };
})();
