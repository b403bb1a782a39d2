export function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "mtv-table-box";
  el.append(box);

  function inOrder(rows, by) {
    const key = Math.abs(by) - 1, value = (row) => row.cells[key].sort;
    return rows.sort((one, other) => {
      const [x, y] = [value(one), value(other)];
      if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
      return (x < y ? -1 : x > y ? 1 : 0) * Math.sign(by);
    });
  }
  function header(text, number, by) {
    const cell = document.createElement("th"), button = document.createElement("button"), mine = Math.abs(by) === number;
    button.type = "button";
    button.textContent = text + (mine ? (by > 0 ? " \u2191" : " \u2193") : "");
    button.title = `sort by ${text}`;
    button.onclick = () => {
      model.set("sorted", by === number ? -number : number);
      model.save_changes();
    };
    cell.setAttribute("aria-sort", mine ? (by > 0 ? "ascending" : "descending") : "none");
    cell.append(button);
    return cell;
  }
  function choose(key) {
    model.set("chosen", key);
    model.save_changes();
  }
  function line(row) {
    const line = document.createElement("tr");
    line.tabIndex = row.key === model.get("chosen") ? 0 : -1;
    line.dataset.key = row.key;
    line.setAttribute("aria-selected", row.key === model.get("chosen"));
    for (const one of row.cells) {
      const cell = line.insertCell();
      cell.textContent = one.text;
      if (typeof one.sort !== "string") cell.className = "n";
    }
    line.onclick = () => choose(row.key);
    return line;
  }
  let seen = "";
  function into(row) { // scrolls the table alone, not the page
    const head = box.querySelector("thead").offsetHeight;
    const top = row.offsetTop - head, bottom = row.offsetTop + row.offsetHeight - box.clientHeight;
    if (box.scrollTop > top || box.scrollTop < bottom) box.scrollTop = top - head;
  }
  function show() {
    const by = model.get("sorted"), rows = [...model.get("rows")], table = document.createElement("table");
    table.setAttribute("aria-label", model.get("label"));
    const numbers = rows.length ? rows[0].cells.map((one) => typeof one.sort !== "string") : [];
    const heads = model.get("heads").map((text, place) => header(text, place + 1, by));
    heads.forEach((cell, place) => { if (numbers[place]) cell.className = "n"; });
    table.createTHead().insertRow().append(...heads);
    table.createTBody().append(...(by ? inOrder(rows, by) : rows).map(line));
    const at = box.scrollTop, focused = box.contains(document.activeElement) && document.activeElement.tagName === "TR";
    box.replaceChildren(table);
    box.scrollTop = at;
    const chosen = table.querySelector("tr[aria-selected=true]");
    if (!chosen && table.tBodies[0].rows.length) table.tBodies[0].rows[0].tabIndex = 0;
    if (focused && chosen) chosen.focus({ preventScroll: true });
    if (chosen && model.get("chosen") !== seen) into(chosen);
    seen = model.get("chosen");
  }
  box.addEventListener("keydown", (event) => {
    const here = event.target.closest("tr[data-key]");
    if (!here) return;
    const to = { ArrowDown: here.nextElementSibling, ArrowUp: here.previousElementSibling, Enter: here }[event.key];
    if (event.key === "ArrowDown" || event.key === "ArrowUp" || event.key === "Enter") {
      event.preventDefault();
      event.stopPropagation(); // else JupyterLab goes to another cell
    }
    if (!to) return;
    to.focus();
    choose(to.dataset.key);
  });
  requestAnimationFrame(() => { seen = ""; show(); }); // when it has a height
  model.on("change:rows change:chosen change:sorted change:heads", show);
  show();
}
