const SVG = "http://www.w3.org/2000/svg";

function make(parent, name, className) {
  const element = document.createElement(name);
  element.className = className;
  parent.append(element);
  return element;
}

export function render({ model, el }) {
  const box = make(el, "div", "mtv-picture-box");
  const image = make(box, "img", "");
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("preserveAspectRatio", "none");
  box.append(drawing);
  const cross = make(box, "div", "mtv-cross");
  for (const part of ["left", "right", "up", "down"]) make(cross, "i", part);
  const title = make(box, "div", "mtv-title"), left = make(box, "div", "mtv-left"), right = make(box, "div", "mtv-right");
  box.tabIndex = 0;
  box.setAttribute("role", "img");
  image.draggable = false;
  image.alt = "";

  let url = null;
  function show() {
    const bytes = model.get("picture");
    if (!bytes || !bytes.byteLength) return;
    const next = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    const before = url;
    image.onload = () => { if (before) URL.revokeObjectURL(before); };
    image.src = next;
    url = next;
    box.dataset.drawn = Number(box.dataset.drawn || 0) + 1;
  }
  function draw() {
    drawing.setAttribute("viewBox", `0 0 ${model.get("size").join(" ")}`);
    const paths = [];
    for (const line of model.get("lines")) {
      for (const kind of ["edge", line.dash ? "dashed" : "solid"]) {
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("d", line.d);
        path.setAttribute("class", kind);
        if (kind !== "edge") path.style.stroke = line.stroke;
        paths.push(path);
      }
    }
    drawing.replaceChildren(...paths);
    box.dataset.lines = model.get("lines").length;
  }
  function aim() {
    const [u, v] = model.get("cross");
    cross.hidden = u === undefined;
    box.style.setProperty("--u", `${100 * u}%`);
    box.style.setProperty("--v", `${100 * v}%`);
    box.dataset.at = model.get("cross").map((one) => one.toFixed(4)).join(" ");
  }
  function label() {
    title.textContent = model.get("title");
    box.setAttribute("aria-label", model.get("title"));
    left.textContent = model.get("letters")[0] || "";
    right.textContent = model.get("letters")[1] || "";
    box.style.setProperty("--ratio", model.get("ratio"));
    box.classList.toggle("light", model.get("light"));
  }

  // One message at a time: what moves faster than the kernel draws is summed up, not queued.
  let waiting = null, steps = 0, place = null, large = false;
  function send() {
    if (waiting || (!steps && !place && !large)) return;
    model.send({ steps, place, large });
    steps = 0;
    place = null;
    large = false;
    waiting = setTimeout(answered, 1500);
  }
  function answered() {
    clearTimeout(waiting);
    waiting = null;
    send();
  }
  const at = (event) => {
    const frame = box.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  };
  let turned = 0;
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    // A touchpad tells of many small turns; a notch of a wheel is about 100.
    turned += Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY) * (event.deltaMode ? 33 : 1), 100);
    const whole = Math.trunc(turned / 50);
    if (!whole) return;
    turned -= 50 * whole;
    steps -= Math.sign(whole);
    send();
  }, { passive: false });
  box.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    box.focus({ preventScroll: true });
    if (event.pointerType !== "touch") box.setPointerCapture(event.pointerId);
    place = at(event);
    send();
  });
  box.addEventListener("pointermove", (event) => {
    if (!(event.buttons & 1) || event.pointerType === "touch") return;
    place = at(event);
    send();
  });
  box.addEventListener("dblclick", () => { large = true; send(); });
  const keys = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") large = true;
    else if (keys[event.key]) steps += keys[event.key];
    else return;
    event.preventDefault();
    event.stopPropagation(); // else JupyterLab goes to another cell
    send();
  });

  model.on("msg:custom", answered);
  model.on("change:picture", show);
  model.on("change:lines change:size", draw);
  model.on("change:cross", aim);
  model.on("change:title change:letters change:ratio change:light", label);
  label();
  draw();
  aim();
  show();
}
