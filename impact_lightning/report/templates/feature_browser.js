"use strict";

/** The feature browser: cards of latents, to search and sort. */
(() => {
  const PER_PAGE = 24;

  Viewers.features = (root, data) => {
    const browser = new Browser(root, data);
    Viewers.featuresOf = (label) => browser.ofClass(label);
    Viewers.routes.feature = (parts) => browser.open(...parts);
  };

  class Browser {
    constructor(root, data) {
      this.data = data;
      this.album = Viewers.albumOf(data);
      this.cards = new Map();
      this.dictionaries = data.dictionaries.map((one) => ({ ...one, bytes: Viewers.bytes(one.maps) }));
      this.page = 0;
      this.build(root);
      this.choose(0);
    }

    build(root) {
      const { make, field, choice } = Viewers;
      const again = () => this.show(0);
      this.dictionary = choice(
        this.dictionaries.map((one, place) => [place, `${one.model} · ${one.name}`]), (place) => this.choose(Number(place)),
      );
      this.query = make("input", { type: "search", placeholder: "number, label or class of the lens", input: again });
      this.metric = choice([["latent", "Number"]], again);
      this.falling = make("button", {
        type: "button", class: "viewer-order", "aria-pressed": "true", click: () => this.turn(),
      });
      this.maps = make("input", { type: "checkbox", checked: true, change: () => this.show(this.page) });
      this.status = make("p", { role: "status", class: "viewer-status" });
      this.list = make("ol", { class: "cards" });
      this.pager = [this.pages(), this.pages()];
      root.append(
        make("form", { class: "viewer-form", submit: (event) => event.preventDefault() },
          field("Dictionary", this.dictionary), field("Search", this.query), field("Sort by", this.metric), this.falling,
          make("label", { class: "viewer-check" }, this.maps, " heat maps")),
        this.status, this.pager[0].nav, this.list, this.pager[1].nav,
      );
      this.order();
    }

    /** Return a row of buttons that turn pages. */
    pages() {
      const { make } = Viewers;
      const back = make("button", { type: "button", click: () => this.show(this.page - 1) }, "← Previous");
      const next = make("button", { type: "button", click: () => this.show(this.page + 1) }, "Next →");
      const where = make("span");
      return { back, next, where, nav: make("div", { role: "navigation", class: "viewer-pages", "aria-label": "Pages of features" }, back, where, next) };
    }

    /** Show another dictionary: metrics that it has not got cannot be sorted by. */
    choose(place) {
      const of = this.dictionaries[place];
      this.of = of;
      this.dictionary.value = place;
      const known = Object.entries(this.data.metrics).filter(([key]) => of.numbers[key].some((x) => x !== null));
      const wanted = this.metric.value;
      Viewers.offer(this.metric, [["latent", "Number"], ...known]);
      const first = known.some(([key]) => key === "alike") ? "alike" : "purity"; // both are of ten images or more
      const options = [...this.metric.options].map((option) => option.value);
      this.metric.value = [this.wished ? wanted : first, first, "latent"].find((key) => options.includes(key));
      this.wished = true;
      this.show(0);
    }

    turn() {
      this.falling.setAttribute("aria-pressed", String(this.falling.getAttribute("aria-pressed") !== "true"));
      this.order();
      this.show(0);
    }

    order() {
      const falls = this.falling.getAttribute("aria-pressed") === "true";
      this.falling.textContent = falls ? "↓ largest first" : "↑ smallest first";
      this.sign = falls ? -1 : 1;
    }

    /** Return the places of the latents that fit the search, sorted; undefined numbers come last. */
    found() {
      const { of } = this;
      const query = this.query.value.trim().toLowerCase();
      const places = of.latent.map((_, place) => place).filter((place) => this.fits(place, query));
      const values = this.metric.value === "latent" ? of.latent : of.numbers[this.metric.value];
      return places.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (x === null || y === null) {
          return (x === null) - (y === null) || a - b;
        }
        return this.sign * (x - y) || a - b;
      });
    }

    fits(place, query) {
      if (!query) {
        return true;
      }
      if (/^#?\d+$/.test(query)) {
        return this.of.latent[place] === Number(query.replace("#", ""));
      }
      return [this.label(place), ...this.lens(place)].some((name) => name.toLowerCase().includes(query));
    }

    label(place) {
      return this.of.classes[this.of.label[place]] ?? "";
    }

    lens(place) {
      const { of } = this;
      return of.lens[place].map((label) => (of.lens_is_named ? of.classes[label] : String(label)));
    }

    show(page) {
      const places = this.found();
      const last = Math.max(0, Math.ceil(places.length / PER_PAGE) - 1);
      this.page = Math.min(Math.max(0, page), last);
      const shown = places.slice(this.page * PER_PAGE, (this.page + 1) * PER_PAGE);
      this.cards = new Map(shown.map((place) => [place, this.card(place)]));
      this.list.replaceChildren(...this.cards.values());
      const { of } = this;
      const [fit, held, alive, all] = [places.length, of.latent.length, of.alive, of.latents].map((n) => n.toLocaleString("en"));
      this.status.textContent = `${fit === held ? "" : `${fit} of `}${held} latents${held === alive ? "" : ` of the ${alive}`} that fire,`
        + ` in a dictionary of ${all}`
        + `${of.grid ? "" : "; there are no heat maps: where its tokens lie on the images is not known"}`;
      for (const { back, next, where, nav } of this.pager) {
        nav.hidden = last === 0;
        back.disabled = this.page === 0;
        next.disabled = this.page === last;
        where.textContent = `page ${this.page + 1} of ${last + 1}`;
      }
    }

    card(place) {
      const { make, link, number } = Viewers;
      const { of } = this;
      const [label, lens] = [this.label(place), this.lens(place)];
      const metrics = Object.entries(this.data.metrics).filter(([key]) => of.numbers[key][place] !== null);
      const neighbours = of.neighbours[place].map(([other, cosine]) => make("li", {}, of.latent.includes(other)
        ? make("a", { href: link("feature", of.model, of.name, other), title: `cosine ${number(cosine)}` }, String(other))
        : make("span", { title: `cosine ${number(cosine)}; not in this page` }, String(other))));
      return make("li", { class: "card", tabindex: "-1", "data-latent": of.latent[place] },
        make("h4", {}, make("a", { href: link("feature", of.model, of.name, of.latent[place]) }, `Latent ${of.latent[place]}`),
          label ? make("a", { class: "badge", href: link("class", of.label[place]) }, label) : null),
        make("div", { class: "strip" }, of.pictures[place].map((picture, nth) => this.picture(place, picture, nth))),
        make("dl", { class: "numbers" }, metrics.map(([key, name]) =>
          make("div", {}, make("dt", {}, name), make("dd", {}, number(of.numbers[key][place]))))),
        lens.length ? make("p", { class: "small" }, `Lens: ${lens.join(", ")}`) : null,
        neighbours.length ? make("div", { class: "small" }, "Similar: ", make("ul", { class: "inline" }, neighbours)) : null);
    }

    picture(place, picture, nth) {
      const { of } = this;
      const caption = of.classes[this.album.label(picture)] ?? "";
      if (!of.grid || nth >= of.mapped || !this.maps.checked) {
        return this.album.show(picture, caption);
      }
      const size = of.grid[0] * of.grid[1];
      const start = (place * of.mapped + nth) * size;
      return this.album.show(picture, caption, { bytes: of.bytes.subarray(start, start + size), grid: of.grid });
    }

    /** Show one latent, and what is around it in the order that is chosen. */
    open(model, name, latent) {
      const which = this.dictionaries.findIndex((one) => one.model === model && one.name === name);
      const place = which < 0 ? -1 : this.dictionaries[which].latent.indexOf(Number(latent));
      if (place < 0) {
        this.status.textContent = `Latent ${latent} of ${model}, ${name} is not in this page.`;
        this.status.scrollIntoView({ block: "center" });
        return;
      }
      if (this.of !== this.dictionaries[which]) {
        this.choose(which);
      }
      this.query.value = "";
      this.show(Math.floor(this.found().indexOf(place) / PER_PAGE));
      const card = this.cards.get(place);
      card.classList.add("chosen");
      card.focus({ preventScroll: true });
      card.scrollIntoView({ block: "center" });
    }

    /** Return the latents whose label is a class, best first: model, dictionary, number, monosemanticity. */
    ofClass(label) {
      return this.dictionaries.map((of) => {
        const score = of.numbers.alike.some((x) => x !== null) ? "alike" : "same_label";
        const places = of.label.flatMap((own, place) => (own === label ? [place] : []));
        places.sort((a, b) => (of.numbers[score][b] ?? -1) - (of.numbers[score][a] ?? -1));
        return { model: of.model, name: of.name, latents: places.map((place) => [of.latent[place], of.numbers[score][place]]) };
      }).filter((one) => one.latents.length);
    }
  }
})();
