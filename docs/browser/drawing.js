// The paper: strokes of a mouse, a pen or a finger, and pictures laid on it.

/** @typedef {{points: {x: number, y: number}[], width: number, erase: boolean} | {picture: CanvasImageSource | null}} Step */

export class Drawing {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} size of the canvas in pixels, both ways
   * @param {() => void} changed called after each step that changed the drawing
   */
  constructor(canvas, size, changed) {
    this.canvas = canvas;
    this.size = canvas.width = canvas.height = size;
    this.changed = changed;
    this.width = 1;
    this.erase = false;
    this.untouched = false; // shows an example that the first stroke replaces
    /** @type {Step[]} */
    this.steps = [];
    this.stroke = null;
    this.context = canvas.getContext("2d");
    this.done = new OffscreenCanvas(size, size);
    this.repaint();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.end(event));
  }

  get empty() {
    return !this.steps.some((step) => step.points || step.picture) || Boolean(this.steps.at(-1)?.picture === null);
  }

  /** The pixels of the drawing, without a stroke that is not finished. */
  pixels() {
    return this.done.getContext("2d").getImageData(0, 0, this.size, this.size);
  }

  undo() {
    if (this.steps.pop()) this.finish();
  }

  clear() {
    if (!this.empty) this.lay(null);
  }

  /** Replace the drawing by a picture as large as fits, on white; by nothing if it is null. */
  lay(picture, { untouched = false } = {}) {
    this.steps.push({ picture });
    this.finish();
    this.untouched = untouched;
  }

  finish() {
    this.untouched = false;
    this.repaint();
    this.changed();
  }

  repaint() {
    const context = this.done.getContext("2d", { willReadFrequently: true });
    const last = this.steps.findLastIndex((step) => "picture" in step);
    context.fillStyle = "white";
    context.fillRect(0, 0, this.size, this.size);
    for (const step of this.steps.slice(Math.max(0, last))) {
      if (step.points) draw(context, step);
      else if (step.picture) fit(context, step.picture, this.size);
    }
    this.show();
  }

  show() {
    this.context.drawImage(this.done, 0, 0);
    if (this.stroke) draw(this.context, this.stroke);
  }

  begin(event) {
    if (this.stroke || event.button > 0) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    if (this.untouched) this.clear();
    const erase = this.erase || Boolean(event.buttons & 32); // the other end of a pen
    this.stroke = { points: [this.place(event)], width: this.width * (erase ? 2.5 : 1), erase };
    this.pointer = event.pointerId;
    this.show();
  }

  move(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.stroke.points.push(...(events.length ? events : [event]).map((e) => this.place(e)));
    this.show();
  }

  end(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    this.steps.push(this.stroke);
    this.stroke = null;
    this.finish();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.size,
      y: ((event.clientY - box.top) / box.height) * this.size,
    };
  }
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
