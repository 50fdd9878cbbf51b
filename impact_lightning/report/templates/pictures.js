"use strict";

/** Pictures: test images cut out of their sheets, with heat maps above them. */
(() => {
  // magma, from dark to light: its brightness alone tells the value, so that no one needs its colours
  const MAGMA = [
    [0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122],
    [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191],
  ];
  const UNKNOWN = 255; // the byte of a patch that was not measured
  const LEAST = 64; // pixels of a drawn picture: maps have few patches, and stay sharp

  function colour(share) {
    const x = share * (MAGMA.length - 1);
    const low = Math.min(Math.floor(x), MAGMA.length - 2);
    return MAGMA[low].map((value, channel) => value + (x - low) * (MAGMA[low + 1][channel] - value));
  }

  /** Return base64 as bytes. */
  Viewers.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  let shared = null;

  /** Return the pictures of a viewer: its own, or those that all share, which are with the classes. */
  Viewers.albumOf = (data) => {
    if (data.pictures) {
      return new Album(data.pictures);
    }
    shared ??= new Album(Viewers.data("classes")?.pictures ?? { cells: [], names: [], rows: [], labels: [] });
    return shared;
  };

  class Album {
    constructor(content) {
      this.content = content;
      this.sheets = new Map(); // promises of decoded sheets: each is decoded when it is first seen
    }

    label(picture) {
      return this.content.labels[picture];
    }

    /** Return what a picture is called. */
    title(picture) {
      return this.content.names[picture] || `test image ${this.content.rows[picture]}`;
    }

    sheet(place) {
      if (!this.sheets.has(place)) {
        const image = new Image();
        image.src = this.content.sheets[place].uri;
        this.sheets.set(place, image.decode().then(() => image));
      }
      return this.sheets.get(place);
    }

    /**
     * Return a picture.
     *
     * @param {number} picture Its place in the album.
     * @param {string} caption What is said of it to those who do not see it.
     * @param {{bytes: Uint8Array, grid: number[]} | null} map Its heat map.
     */
    show(picture, caption, map = null) {
      const cell = this.content.cells[picture];
      const said = `${this.title(picture)}${caption ? `: ${caption}` : ""}`;
      if (!cell) {
        return Viewers.make("span", { class: "picture blank", title: said }, `no picture of ${this.title(picture)}`);
      }
      const { height, width } = this.content.sheets[cell[0]];
      const scale = Math.max(1, Math.ceil(LEAST / Math.max(height, width)));
      const canvas = Viewers.make("canvas", {
        class: "picture", role: "img", "aria-label": said, title: said, width: width * scale, height: height * scale,
      });
      this.sheet(cell[0]).then((sheet) => {
        const from = [(cell[1] % this.content.columns) * width, Math.floor(cell[1] / this.content.columns) * height];
        const context = canvas.getContext("2d", { willReadFrequently: map !== null });
        context.imageSmoothingEnabled = false;
        context.drawImage(sheet, ...from, width, height, 0, 0, canvas.width, canvas.height);
        if (map) {
          heat(context, canvas, map);
        }
        canvas.dataset.drawn = "";
      }, () => canvas.replaceWith(Viewers.make("span", { class: "picture blank", title: said }, "damaged picture")));
      return canvas;
    }
  }

  /** Lay a map over a picture: dark where there is nothing, light and warm where there is much, pale where it is not
   * known. Colours stay: a feature may stand for one. */
  function heat(context, { width, height }, { bytes, grid: [rows, columns] }) {
    const image = context.getImageData(0, 0, width, height);
    const pixels = image.data;
    for (let y = 0; y < height; y++) {
      const row = Math.floor((y * rows) / height) * columns;
      for (let x = 0; x < width; x++) {
        const value = bytes[row + Math.floor((x * columns) / width)];
        const at = 4 * (y * width + x);
        const share = Math.min(1, value / 254);
        const light = Math.sqrt(share);
        const lit = colour(share);
        for (let channel = 0; channel < 3; channel++) {
          const own = pixels[at + channel];
          pixels[at + channel] = value === UNKNOWN
            ? 0.3 * own + 0.7 * 255
            : own * (0.3 + 0.7 * light) * (1 - 0.3 * light) + 0.3 * light * lit[channel];
        }
      }
    }
    context.putImageData(image, 0, 0);
  }
})();
