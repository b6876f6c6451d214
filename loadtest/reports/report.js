// Shows the values under the pointer: a line across the plot, and the values below it.
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const plot = JSON.parse(svg.dataset.plot);
  const cross = svg.querySelector(".cross");
  const out = svg.nextElementSibling;
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
    let best = plot.rows[0];
    for (const row of plot.rows) if (Math.abs(row[0] - x) < Math.abs(best[0] - x)) best = row;
    cross.setAttribute("x1", best[0]);
    cross.setAttribute("x2", best[0]);
    cross.style.visibility = "visible";
    const values = plot.names
      .map((name, i) => [name, best[i + 2]])
      .filter(([, value]) => value !== null)
      .map(([name, value]) => `${name} ${value.toLocaleString("en", { maximumSignificantDigits: 4 })}`);
    out.textContent = `${plot.x} ${best[1]}: ${values.join(", ")}`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => {
    cross.style.visibility = "hidden";
    out.textContent = "\u00a0";
  });
}
