export function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "mtv-table";
  el.append(box);
  let key = null, upwards = true;
  function show() {
    const heads = model.get("heads"), rows = [...model.get("rows")], chosen = model.get("chosen");
    if (key !== null) {
      const value = (row) => row.cells[key].sort;
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return (x < y ? -1 : x > y ? 1 : 0) * (upwards ? 1 : -1);
      });
    }
    const table = document.createElement("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    heads.forEach((text, place) => {
      const cell = document.createElement("th"), button = document.createElement("button");
      button.textContent = text + (place === key ? (upwards ? " \u2191" : " \u2193") : "");
      button.title = "sort by " + text;
      button.onclick = () => { upwards = place === key ? !upwards : true; key = place; show(); };
      cell.setAttribute("aria-sort", place === key ? (upwards ? "ascending" : "descending") : "none");
      cell.append(button);
      head.append(cell);
    });
    for (const row of rows) {
      const line = body.insertRow();
      line.tabIndex = 0;
      line.dataset.key = row.key;
      line.setAttribute("aria-selected", row.key === chosen);
      for (const one of row.cells) {
        const cell = line.insertCell();
        cell.textContent = one.text;
        if (typeof one.sort === "number" || one.sort === null) cell.className = "n";
      }
      const choose = () => { model.set("chosen", row.key); model.save_changes(); };
      line.onclick = choose;
      line.onkeydown = (event) => { if (event.key === "Enter") choose(); };
    }
    const at = box.scrollTop;
    box.replaceChildren(table);
    box.scrollTop = at;
  }
  model.on("change:rows", show);
  model.on("change:chosen", show);
  show();
}
