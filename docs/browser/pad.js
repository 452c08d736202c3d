// The drawing pad: what is drawn goes to the model in worker.js, what comes back is shown.

import { Drawing } from "./drawing.js";
import { resize, styleCode, toModelRange, toPixels } from "./input.js";

const PAUSE = 120; // milliseconds without a new stroke before the drawing is translated
const SHOWN = 512; // pixels of the paper and of an enlarged colouring, at least
const TILE = 256;

const at = (name) => new URL(name, import.meta.url).href;

class Model {
  constructor(manifest) {
    Object.assign(this, manifest);
    this.worker = new Worker(at("worker.js"), { type: "module" });
    this.calls = new Map();
    this.worker.addEventListener("message", ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.calls.get(id);
      this.calls.delete(id);
      if (error) reject(new Error(error));
      else resolve(result);
    });
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      for (const { reject } of this.calls.values()) reject(new Error(event.message ?? "worker.js did not start"));
      this.calls.clear();
    });
  }

  call(task, request) {
    const id = (this.count = (this.count ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject });
      this.worker.postMessage({ id, task, ...request });
    });
  }

  async load() {
    await this.call("load", { runtime: at(this.runtime), model: at(this.model) });
    // The first translation of a size reserves memory; it should not be the visitor's.
    await this.translate(new Float32Array(this.channels * this.size ** 2).fill(1), this.codes(0));
  }

  /** Translations of one drawing: without style codes a model has one. */
  get styles() {
    return this.style_dim ? 6 : 1;
  }

  /** The codes of consecutive seeds, [styles · style_dim]. */
  codes(first) {
    const codes = Array.from({ length: this.styles }, (_, i) => [...styleCode(first + i, this.style_dim)]);
    return Float32Array.from(codes.flat());
  }

  /**
   * @param {Float32Array} image [channels, size, size] in [-1, 1]
   * @param {Float32Array} codes [S · style_dim]
   * @returns {Promise<{values: Float32Array, shape: number[], milliseconds: number}>} values [1, S, C', size, size]
   */
  translate(image, codes) {
    const shape = [1, this.channels, this.size, this.size];
    return this.call("translate", { image, shape, codes, styleDim: this.style_dim });
  }
}

class Pad {
  /** Show the pad, load the model, translate the first example. */
  async start() {
    this.section = document.querySelector("#drawing-pad");
    const response = await fetch(at("manifest.json"));
    if (!response.ok) throw new Error(`manifest.json: HTTP status ${response.status}`);
    this.model = new Model(await response.json());
    this.seed = 1;
    this.shown = null; // what the tiles show: image, codes, and what `Model.translate` gave for them
    this.build();
    this.section.hidden = false;
    const loaded = this.model.load();
    const [example] = this.model.examples ?? [];
    await Promise.all([loaded, example && this.open(at(example.file), { untouched: true })]);
    this.loaded = true;
    await this.translate();
  }

  find(selector) {
    return this.section.querySelector(selector);
  }

  build() {
    const { size, styles, examples = [], about = {} } = this.model;
    this.scale = Math.max(1, Math.ceil(SHOWN / size)); // pixels of the paper for one of the model
    this.paper = new Drawing(this.find(".pad-canvas"), size * this.scale, () => this.changed());
    this.tiles = Array.from({ length: styles }, (_, i) => {
      const tile = document.createElement("button");
      tile.type = "button";
      tile.className = "pad-tile";
      tile.innerHTML = `<canvas width="${TILE}" height="${TILE}"></canvas><span></span>`;
      tile.addEventListener("click", () => this.enlarge(i));
      this.find(".pad-grid").append(tile);
      return tile;
    });
    for (const { name, file } of examples) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = button.ariaLabel = `Example: ${name}`;
      button.innerHTML = `<img alt="" src="${at(file)}">`;
      button.addEventListener("click", () => this.open(at(file)));
      this.find(".pad-examples").append(button);
    }
    for (const part of ['[data-part="styles"]', '[data-action="save-style"]']) this.find(part).hidden = styles === 1;
    const weights = about.licence && `Weights: ${about.licence}`;
    this.find(".pad-about").textContent = [weights, about.attribution].filter(Boolean).join(" · ");
    this.listen();
    this.name();
    this.blank();
  }

  listen() {
    const tools = this.section.querySelectorAll("[data-tool]");
    for (const tool of tools) {
      tool.addEventListener("click", () => {
        this.paper.erase = tool.dataset.tool === "eraser";
        for (const other of tools) other.ariaPressed = String(other === tool);
      });
    }
    const width = this.find('[data-control="width"]');
    const widen = () => (this.paper.width = width.valueAsNumber * this.scale);
    width.addEventListener("input", widen);
    widen();
    const seed = this.find('[data-control="seed"]');
    seed.addEventListener("change", () => this.take(seed.valueAsNumber));
    const file = this.find('[data-control="file"]');
    file.addEventListener("change", () => {
      if (file.files.length) this.open(file.files[0]);
      file.value = ""; // so that the same file can be opened again
    });
    this.find('[data-control="lines"]').addEventListener("change", () => this.show());
    const actions = {
      undo: () => this.paper.undo(),
      clear: () => this.paper.clear(),
      save: () => save(this.paper.canvas, "drawing.png"),
      others: () => this.take(this.seed + this.model.styles),
      "save-colouring": () => save(this.find("dialog canvas"), `colouring-${this.seed + this.enlarged}.png`),
      "save-style": () => download(this.style(this.enlarged), `style-${this.seed + this.enlarged}.json`),
      close: () => this.find("dialog").close(),
    };
    for (const [name, action] of Object.entries(actions)) {
      this.find(`[data-action="${name}"]`).addEventListener("click", action);
    }
    document.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && !event.target.closest?.("input[type=number]")) {
        event.preventDefault();
        this.paper.undo();
      }
    });
    const dialog = this.find("dialog");
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  /** Lay a picture on the paper. @param {Blob | string} source a file, or an address */
  async open(source, options) {
    try {
      const blob = source instanceof Blob ? source : await (await fetch(source)).blob();
      const picture = await createImageBitmap(blob);
      this.paper.lay(picture, options);
      picture.close();
    } catch {
      this.say(`${source.name ?? source} is not a picture that this browser can read.`);
    }
  }

  /** Take the styles of other seeds. */
  take(seed) {
    this.seed = Number.isInteger(seed) ? Math.min(Math.max(seed, 0), 999994) : this.seed;
    this.name();
    this.changed();
  }

  name() {
    this.find('[data-control="seed"]').value = this.seed;
    this.tiles.forEach((tile, i) => {
      tile.querySelector("span").textContent = this.model.styles > 1 ? `seed ${this.seed + i}` : "";
      tile.ariaLabel = `Enlarge the colouring of seed ${this.seed + i}`;
    });
  }

  changed() {
    this.find(".pad-hint").hidden = !this.paper.untouched;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.timer = null;
      this.translate();
    }, PAUSE);
    this.settle();
  }

  /** Tell assistive technology whether the colourings are those of the drawing. */
  settle() {
    this.find(".pad-grid").ariaBusy = String(Boolean(this.timer || this.busy || !this.loaded));
  }

  say(text) {
    this.find(".pad-status").textContent = text;
  }

  /** Translate what is on the paper; while a translation runs, once more after it. */
  async translate() {
    if (!this.loaded || this.paper.stroke) return; // a stroke ends in a change
    if (this.paper.empty) {
      this.blank();
      this.say("Draw something, or take an example.");
      this.settle();
      return;
    }
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    try {
      const { size, channels, styles } = this.model;
      do {
        this.again = false;
        const image = toModelRange(resize(this.paper.pixels(), size), channels);
        const codes = this.model.codes(this.seed);
        const result = await this.model.translate(image, codes);
        if (this.paper.empty) return; // cleared meanwhile
        this.shown = { image, codes, ...result };
        this.show();
        const time = Math.round(result.milliseconds);
        this.say(`${styles > 1 ? "Six colourings" : "One translation"} in ${time} milliseconds, in your browser.`);
        this.section.dataset.translations = Number(this.section.dataset.translations ?? 0) + 1;
      } while (this.again);
    } catch (error) {
      this.say(`The drawing could not be translated: ${error.message}`);
    } finally {
      this.busy = false;
      this.settle();
    }
  }

  blank() {
    this.shown = null;
    for (const tile of this.tiles) {
      tile.disabled = true;
      const context = tile.querySelector("canvas").getContext("2d");
      context.fillStyle = "white";
      context.fillRect(0, 0, TILE, TILE);
    }
  }

  show() {
    if (!this.shown) return;
    this.tiles.forEach((tile, i) => {
      this.paint(tile.querySelector("canvas"), i);
      tile.disabled = false;
    });
    if (this.find("dialog").open) this.enlarge(this.enlarged);
  }

  /** Paint a colouring as large as the canvas is. */
  paint(canvas, i) {
    const [, , channels, height, width] = this.shown.shape;
    const count = channels * height * width;
    const small = new OffscreenCanvas(width, height);
    const pixels = toPixels(this.shown.values.subarray(i * count, (i + 1) * count), channels);
    small.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.globalCompositeOperation = "copy";
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (this.find('[data-control="lines"]').checked) {
      context.globalCompositeOperation = "multiply";
      context.drawImage(this.paper.canvas, 0, 0, canvas.width, canvas.height);
    }
  }

  enlarge(i) {
    this.enlarged = i;
    const dialog = this.find("dialog");
    const canvas = dialog.querySelector("canvas");
    canvas.width = canvas.height = this.paper.size;
    this.paint(canvas, i);
    this.find(".pad-caption").textContent = this.tiles[i].querySelector("span").textContent;
    if (!dialog.open) dialog.showModal();
  }

  /** The style of a tile as a file for `munit-fast app`, whose seeds are others. */
  style(i) {
    const { name: model, style_dim: length } = this.model;
    const code = [...this.shown.codes.subarray(i * length, (i + 1) * length)];
    const values = { format: "munit-fast style", model, direction: "a2b", seed: null, code };
    return new Blob([JSON.stringify(values, null, 1), "\n"], { type: "application/json" });
  }
}

function save(canvas, name) {
  canvas.toBlob((blob) => download(blob, name));
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export const pad = new Pad();
