export function render({ model, el }) {
  const box = document.createElement("div"), image = document.createElement("img"), title = document.createElement("div");
  box.className = "mtv-picture";
  box.tabIndex = 0;
  image.draggable = false;
  box.append(image, title);
  el.append(box);
  let url = null;
  function show() {
    const bytes = model.get("picture");
    if (!bytes || !bytes.byteLength) return;
    const next = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    image.src = next;
    if (url) URL.revokeObjectURL(url);
    url = next;
    box.dataset.drawn = Number(box.dataset.drawn || 0) + 1;
  }
  function label() {
    title.textContent = model.get("title");
    image.alt = model.get("title");
    box.setAttribute("aria-label", model.get("title"));
  }
  // One message at a time: what moves faster than the kernel draws is summed up, not queued.
  let waiting = false, steps = 0, place = null;
  function send() {
    if (waiting || (!steps && !place)) return;
    waiting = true;
    model.send({ steps, place });
    steps = 0;
    place = null;
    setTimeout(() => { waiting = false; send(); }, 1500);
  }
  model.on("msg:custom", () => { waiting = false; send(); });
  const at = (event) => {
    const frame = image.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  };
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    steps += event.deltaY < 0 ? 1 : -1;
    send();
  }, { passive: false });
  let down = false;
  box.addEventListener("pointerdown", (event) => { down = true; place = at(event); send(); });
  box.addEventListener("pointermove", (event) => { if (down && event.buttons) { place = at(event); send(); } });
  box.addEventListener("pointerup", () => { down = false; });
  box.addEventListener("keydown", (event) => {
    const move = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    steps += move;
    send();
  });
  model.on("change:picture", show);
  model.on("change:title", label);
  label();
  show();
}
