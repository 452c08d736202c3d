// The paper: strokes of a mouse, a pen or a finger, and pictures laid on it.

/**
 * A stroke on what is there (if `fresh`, in its place), or a picture as large as the paper.
 *
 * @typedef {{points: {x: number, y: number}[], width: number, erase: boolean, fresh: boolean}
 *   | {picture: OffscreenCanvas, untouched: boolean}} Step
 */

const STEPS = 30; // that can be undone: a picture takes a megabyte

export class Drawing {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} size of the canvas in pixels, both ways
   * @param {() => void} changed called when a stroke begins, and after each step that changed the drawing
   */
  constructor(canvas, size, changed) {
    this.canvas = canvas;
    this.size = canvas.width = canvas.height = size;
    this.changed = changed;
    this.width = 1;
    this.erase = false;
    /** @type {Step[]} */
    this.steps = [];
    this.stroke = null;
    this.context = canvas.getContext("2d");
    this.done = blank(size);
    this.base = blank(size); // before the steps
    this.repaint();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.end(event));
  }

  /** Whether all is white. */
  get empty() {
    return new Uint32Array(this.pixels().data.buffer).every((pixel) => pixel === 0xffffffff);
  }

  /** Whether it shows an example that the first stroke replaces. */
  get untouched() {
    return !this.stroke && Boolean(this.steps.at(-1)?.untouched);
  }

  /** The pixels of the drawing, without a stroke that is not finished. */
  pixels() {
    return this.done.getContext("2d").getImageData(0, 0, this.size, this.size);
  }

  undo() {
    if (!this.steps.pop()) return;
    this.repaint();
    this.changed();
  }

  clear() {
    if (!this.empty) this.lay(null);
  }

  /** Replace the drawing by a picture as large as fits, on white; by nothing if it is null. */
  lay(picture, { untouched = false } = {}) {
    const paper = blank(this.size);
    if (picture) fit(paper.getContext("2d"), picture, this.size);
    this.add({ picture: paper, untouched });
  }

  /** @param {Step} step */
  add(step) {
    this.steps.push(step);
    if (this.steps.length > STEPS) take(this.base, this.steps.shift());
    this.repaint();
    this.changed();
  }

  repaint() {
    take(this.done, { picture: this.base });
    const last = this.steps.findLastIndex((step) => step.picture || step.fresh);
    for (const step of this.steps.slice(Math.max(0, last))) take(this.done, step);
    this.show();
  }

  show() {
    this.context.drawImage(this.done, 0, 0);
    if (this.stroke) take(this.canvas, this.stroke);
  }

  begin(event) {
    if (this.stroke || event.button > 0) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const erase = this.erase || Boolean(event.buttons & 32); // the other end of a pen
    const fresh = this.untouched && !erase;
    this.stroke = { points: [this.place(event)], width: this.width * (erase ? 2.5 : 1), erase, fresh };
    this.pointer = event.pointerId;
    this.show();
    this.changed();
  }

  move(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.stroke.points.push(...(events.length ? events : [event]).map((e) => this.place(e)));
    this.show();
  }

  end(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const { stroke } = this;
    this.stroke = null;
    this.add(stroke);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.size,
      y: ((event.clientY - box.top) / box.height) * this.size,
    };
  }
}

/** White paper. */
function blank(size) {
  const paper = new OffscreenCanvas(size, size);
  const context = paper.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, size, size);
  return paper;
}

/** Paint a step on a canvas. @param {Step} step */
function take(canvas, step) {
  const context = canvas.getContext("2d");
  if (step.picture) {
    context.drawImage(step.picture, 0, 0);
    return;
  }
  if (step.fresh) {
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  draw(context, step);
}

/** A stroke as a smooth curve through the middles between its points. */
function draw(context, { points, width, erase }) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = erase ? "white" : "black";
  context.beginPath();
  context.moveTo(points[0].x, points[0].y);
  for (let i = 1; i < points.length - 1; i++) {
    const { x, y } = points[i];
    context.quadraticCurveTo(x, y, (x + points[i + 1].x) / 2, (y + points[i + 1].y) / 2);
  }
  const { x, y } = points.at(-1);
  context.lineTo(x + 0.01, y); // a dot is a line too
  context.stroke();
}

function fit(context, picture, size) {
  const scale = size / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (size - width) / 2, (size - height) / 2, width, height);
}
