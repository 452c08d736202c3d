// Paper to draw on: after each change the drawing is uploaded, its path becomes the value, and "input" is triggered.
// White paper is null.
const canvas = element.querySelector("canvas");
const paper = canvas.getContext("2d", { willReadFrequently: true });
const pens = element.querySelector(".pens");
const eraser = element.querySelector(".eraser");
const MOST_STEPS = 30;
let colour = null; // null: the eraser
let last = null; // where the pen is, while it is down
let middle = null; // where the line ends so far: between two places of the pen
let before = []; // the paper before each line
let sending = false;
let changed = false;

function choose(button, chosen) {
  for (const other of element.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  colour = chosen;
}

for (const [name, value] of props.pens) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = name;
  button.setAttribute("aria-label", name);
  button.setAttribute("aria-pressed", "false");
  button.style.background = value;
  button.addEventListener("click", () => choose(button, value));
  pens.append(button);
}
choose(pens.firstElementChild, props.pens[0][1]);
eraser.addEventListener("click", () => choose(eraser, null));

function white() {
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
}
white();

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function line(to) {
  paper.lineCap = paper.lineJoin = "round";
  paper.strokeStyle = colour ?? "#fff";
  paper.lineWidth = colour ? props.pen_width : 3 * props.pen_width;
  paper.beginPath();
  const next = [(last[0] + to[0]) / 2, (last[1] + to[1]) / 2];
  paper.moveTo(...middle);
  paper.quadraticCurveTo(...last, ...next); // a polygon would have corners
  paper.stroke();
  [last, middle] = [to, next];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button || last) return;
  canvas.setPointerCapture(event.pointerId);
  before.push(paper.getImageData(0, 0, canvas.width, canvas.height));
  before = before.slice(-MOST_STEPS);
  last = middle = place(event);
  paper.fillStyle = colour ?? "#fff";
  paper.beginPath(); // a line of no length would not be drawn
  paper.arc(...last, (colour ? 0.5 : 1.5) * props.pen_width, 0, 2 * Math.PI);
  paper.fill();
});
canvas.addEventListener("pointermove", (event) => {
  if (!last || !canvas.hasPointerCapture(event.pointerId)) return;
  const points = event.getCoalescedEvents?.() ?? []; // the event is the last of them
  for (const point of points.length ? points : [event]) line(place(point));
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (!last) return;
    line(last); // from the middle to the end
    last = null;
    send();
  });
}
element.querySelector(".undo").addEventListener("click", () => {
  if (!before.length) return;
  paper.putImageData(before.pop(), 0, 0);
  send();
});
element.querySelector(".clear").addEventListener("click", () => {
  before.push(paper.getImageData(0, 0, canvas.width, canvas.height));
  before = before.slice(-MOST_STEPS);
  white();
  send();
});

function isWhite() {
  return paper.getImageData(0, 0, canvas.width, canvas.height).data.every((value) => value === 255);
}

async function path() {
  if (isWhite()) return null;
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return (await upload(new File([blob], "drawing.png", { type: "image/png" }))).path;
}

async function send() {
  changed = true;
  if (sending) return; // the drawing of now follows
  sending = true;
  try {
    while (changed) {
      changed = false;
      props.value = await path();
      trigger("input");
    }
  } catch (error) {
    console.warn("the drawing was not sent:", error);
  } finally {
    sending = false;
  }
}
