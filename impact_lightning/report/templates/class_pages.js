"use strict";

/** Class pages: what each level says of a class. */
(() => {
  const LISTED = 12; // latents of a dictionary

  Viewers.classes = (root, data) => {
    const pages = new Pages(root, data);
    Viewers.routes.class = (parts) => pages.open(Number(parts[0]), true);
  };

  class Pages {
    constructor(root, data) {
      this.album = Viewers.albumOf(data);
      this.data = { ...data, bytes: Viewers.bytes(data.map_bytes) };
      this.build(root);
      this.open(0, false);
    }

    build(root) {
      const { make, field } = Viewers;
      this.query = make("input", { type: "search", placeholder: "part of a name", input: () => this.list() });
      this.links = make("ul", { class: "class-list" });
      this.status = make("p", { role: "status", class: "small" });
      this.page = make("article", { class: "class-page", tabindex: "-1" });
      root.append(make("div", { class: "class-room" },
        make("div", { role: "navigation", "aria-label": "Classes" }, field("Search classes", this.query), this.status, this.links), this.page));
      this.list();
    }

    list() {
      const { make, link } = Viewers;
      const query = this.query.value.trim().toLowerCase();
      const found = this.data.names.flatMap((name, label) => (name.toLowerCase().includes(query) ? [[name, label]] : []));
      this.links.replaceChildren(...found.map(([name, label]) =>
        make("li", {}, make("a", { href: link("class", label), "aria-current": label === this.label ? "true" : null }, name))));
      this.status.textContent = `${found.length} of ${this.data.names.length} classes`;
    }

    open(label, jump) {
      const name = this.data.names[label];
      if (name === undefined) {
        this.page.replaceChildren(Viewers.make("p", {}, "There is no such class in this report."));
      } else {
        this.label = label;
        this.list();
        this.page.replaceChildren(...this.parts(label, name));
      }
      if (jump) {
        this.page.focus({ preventScroll: true });
        this.page.scrollIntoView({ block: "start" });
      }
    }

    parts(label, name) {
      const { make } = Viewers;
      return [
        make("h3", {}, name),
        this.part("Images", "no picture of this class is in the report", this.images(label)),
        this.part("Accuracy", "not measured by class", this.accuracy(label)),
        this.part("Neurons and heads that tell it best from the other classes", "none", this.units(label, name)),
        this.part("Features whose strongest images show it", "none in this page", this.features(label)),
        this.part("Circuits", "no task is about this class", this.circuits(name)),
        this.part("Attribution maps: light patches speak for the class that is explained", "no map of an image of this class is in the report", this.maps(label)),
      ];
    }

    part(heading, otherwise, content) {
      const { make } = Viewers;
      return make("div", { class: "class-part" }, make("h4", {}, heading), content ?? make("p", { class: "small" }, `${otherwise}.`));
    }

    images(label) {
      const pictures = this.data.examples[label];
      return pictures && Viewers.make("div", { class: "strip" }, pictures.map((picture) => this.album.show(picture, "")));
    }

    accuracy(label) {
      const { make, number } = Viewers;
      const known = this.data.models.filter((model) => this.data.accuracy[model]?.[label] !== undefined);
      return known.length ? make("dl", { class: "numbers" }, known.map((model) =>
        make("div", {}, make("dt", {}, model), make("dd", {}, number(this.data.accuracy[model][label]))))) : null;
    }

    units(label, name) {
      const { make } = Viewers;
      const heads = ["Layer", "Unit", "AUROC", "Selectivity", "Density", "Prefers", "Strongest images"];
      const models = this.data.models.filter((model) => this.data.units[model]?.[label]);
      return models.length ? make("div", { class: "tables" }, models.map((model) => make("table", {},
        make("caption", {}, model),
        make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
        make("tbody", {}, this.data.units[model][label].map((unit) => this.unit(unit, name)))))) : null;
    }

    unit([layer, number, auroc, selectivity, density, preferred, pictures], name) {
      const { make } = Viewers;
      return make("tr", {},
        make("td", {}, layer), make("td", {}, String(number)),
        [auroc, selectivity, density].map((value) => make("td", { class: "figure" }, Viewers.number(value))),
        make("td", {}, preferred === name ? "this class" : preferred || "–"),
        make("td", {}, make("div", { class: "tiny" },
          pictures.map((picture) => this.album.show(picture, this.data.names[this.album.label(picture)] ?? "")))));
    }

    features(label) {
      const { make, link, number } = Viewers;
      const found = Viewers.featuresOf?.(label) ?? [];
      return found.length ? make("ul", { class: "plain" }, found.map(({ model, name, latents }) => make("li", {},
        `${model} · ${name} (${latents.length}): `,
        make("ul", { class: "inline" }, latents.slice(0, LISTED).map(([latent, score]) => make("li", {},
          make("a", { href: link("feature", model, name, latent), title: `monosemanticity ${number(score)}` }, String(latent))))),
        latents.length > LISTED ? " …" : ""))) : null;
    }

    circuits(name) {
      const { make, link } = Viewers;
      const found = Viewers.circuitsOf?.(name) ?? [];
      return found.length ? make("ul", { class: "inline" }, found.map(([model, task]) =>
        make("li", {}, make("a", { href: link("circuit", model, task) }, `${model}: ${task}`)))) : null;
    }

    /** Return a table for each image: models in rows, methods in columns. */
    maps(label) {
      const { make } = Viewers;
      const found = this.data.maps[label] ?? [];
      const pictures = [...new Set(found.map(([picture]) => picture))];
      const models = this.data.models.filter((model) => found.some((one) => one[1] === model));
      const methods = this.data.methods.map((_, place) => place).filter((method) => found.some((one) => one[2] === method));
      return found.length ? make("div", { class: "tables" }, pictures.map((picture) => make("div", { class: "wide" }, make("table", { class: "map-table" },
        make("caption", {}, this.album.title(picture), " ", this.album.show(picture, "")),
        make("thead", {}, make("tr", {}, make("td", {}),
          methods.map((method) => make("th", { scope: "col" }, this.data.methods[method].replaceAll("_", " "))))),
        make("tbody", {}, models.map((model) => make("tr", {}, make("th", { scope: "row" }, model),
          methods.map((method) => make("td", {}, this.map(
            found.find((one) => one[0] === picture && one[1] === model && one[2] === method), method)))))))))) : null;
    }

    map(one, method) {
      if (!one) {
        return "–";
      }
      const [picture, model, , start, rows, columns] = one;
      const map = { bytes: this.data.bytes.subarray(start, start + rows * columns), grid: [rows, columns] };
      return this.album.show(picture, `${this.data.methods[method]} of ${model}`, map);
    }
  }
})();
