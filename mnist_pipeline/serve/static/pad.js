// A canvas to draw on with mouse, finger, pen or keyboard. Its ink is its text colour, its paper is transparent.

const INK_WIDTH = 20;
const KEY_STEP = 10;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  #canvas;
  #context;
  #strokes = [];
  #picture = null;
  #pen = { x: 140, y: 140, down: false };
  #shown = false; // the keyboard's pen
  #enabled = true;

  // `changed` is called after every change, `said` with a sentence for those who do not see the pen.
  constructor(canvas, changed, said) {
    this.said = said;
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#draw(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.#end(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#hidePen());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint(this.#shown));
  }

  get enabled() {
    return this.#enabled;
  }

  // Where nothing can be drawn, pictures are shown all the same.
  set enabled(enabled) {
    this.#enabled = enabled;
    this.#canvas.classList.toggle("only-shows", !enabled);
    this.#canvas.setAttribute("role", enabled ? "application" : "img");
    this.#canvas.ariaLabel = enabled ? "Drawing area" : "The picture";
  }

  get isEmpty() {
    return !this.#strokes.length && !this.#picture;
  }

  // What is drawn, as a PNG file.
  toBlob() {
    this.#paint(false);
    const blob = new Promise((resolve) => this.#canvas.toBlob(resolve, "image/png"));
    if (this.#shown) this.#paint(true);
    return blob;
  }

  clear() {
    this.#replace([], null);
    this.changed();
  }

  undo() {
    if (this.#strokes.length) this.#replace(this.#strokes.slice(0, -1), this.#picture);
    else this.#replace([], null);
    this.changed();
  }

  focus() {
    this.#canvas.focus({ preventScroll: true });
  }

  // Show a picture in place of what was drawn. It is for the eye only; `changed` is not called.
  show(bitmap) {
    this.#replace([], bitmap);
  }

  // Whatever stroke is being drawn ends here.
  #replace(strokes, picture) {
    this.#strokes = strokes;
    this.#picture = picture;
    this.#pointer = undefined;
    this.#pen.down = false;
    this.#paint(this.#shown);
  }

  #begin(event) {
    if (!this.#enabled || event.button !== 0 || this.#pointer !== undefined) return;
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#canvas.focus({ preventScroll: true });
    event.preventDefault();
    this.#shown = this.#pen.down = false;
    this.#start(this.#place(event));
  }

  #pointer; // the one that draws: a second finger or a palm does not

  #draw(event) {
    if (event.pointerId !== this.#pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const part of events.length ? events : [event]) this.#strokes.at(-1).push(this.#place(part));
    this.#paint(false);
    this.changed();
  }

  #end(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = undefined;
    this.changed();
  }

  #start(point) {
    this.#picture = null;
    this.#strokes.push([point]);
    this.#paint(this.#shown);
    this.changed();
  }

  #key(event) {
    if (!this.#enabled && event.key !== "Delete" && event.key !== "Escape") return;
    if (event.key in ARROWS) {
      const [dx, dy] = ARROWS[event.key];
      this.#pen.x = Math.min(this.#canvas.width, Math.max(0, this.#pen.x + dx * KEY_STEP));
      this.#pen.y = Math.min(this.#canvas.height, Math.max(0, this.#pen.y + dy * KEY_STEP));
      if (this.#pen.down) this.#strokes.at(-1).push({ x: this.#pen.x, y: this.#pen.y });
      this.#shown = true;
      this.#paint(true);
      if (this.#pen.down) this.changed();
      this.#tell();
    } else if (event.key === " ") {
      this.#pen.down = !this.#pen.down;
      this.#shown = true;
      if (this.#pen.down) this.#start({ x: this.#pen.x, y: this.#pen.y });
      this.#paint(true);
      this.#tell();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else if (event.key === "Delete" || event.key === "Escape") {
      this.clear();
    } else return;
    event.preventDefault();
  }

  #tell() {
    const [across, down] = [this.#pen.x, this.#pen.y].map((place) => Math.round(place / KEY_STEP));
    const steps = Math.round(this.#canvas.width / KEY_STEP);
    this.said(`Pen ${this.#pen.down ? "down" : "up"}, ${across} of ${steps} across, ${down} of ${steps} down.`);
  }

  #hidePen() {
    this.#shown = this.#pen.down = false;
    this.#paint(false);
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.#canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.#canvas.height,
    };
  }

  #paint(withPen) {
    const { width, height } = this.#canvas;
    const context = this.#context;
    context.clearRect(0, 0, width, height);
    if (this.#picture) {
      const scale = Math.min(width / this.#picture.width, height / this.#picture.height);
      const [w, h] = [this.#picture.width * scale, this.#picture.height * scale];
      context.drawImage(this.#picture, (width - w) / 2, (height - h) / 2, w, h);
    }
    const ink = getComputedStyle(this.#canvas).color;
    Object.assign(context, { lineWidth: INK_WIDTH, lineCap: "round", lineJoin: "round", strokeStyle: ink });
    for (const [first, ...rest] of this.#strokes) {
      context.beginPath();
      context.moveTo(first.x, first.y);
      if (!rest.length) context.lineTo(first.x + 0.1, first.y); // a dot: a line of no length is not drawn
      for (const point of rest) context.lineTo(point.x, point.y);
      context.stroke();
    }
    if (withPen) {
      context.beginPath();
      context.arc(this.#pen.x, this.#pen.y, INK_WIDTH / 2, 0, 7);
      Object.assign(context, { lineWidth: 3, strokeStyle: this.#pen.down ? "#c00" : "#888" });
      context.stroke();
    }
  }
}
