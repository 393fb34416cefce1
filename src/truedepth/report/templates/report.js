"use strict";

// Charts: each <figure class="chart"> holds its data in the script element behind its plot.
const fontFamily = getComputedStyle(document.body).fontFamily;
const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const figure = JSON.parse(plot.nextElementSibling.textContent);
  figure.layout.font.family = fontFamily;
  figure.layout.hoverlabel.font.family = fontFamily;
  const named = figure.data.filter((trace) => trace.showlegend !== false);
  if (plot.clientWidth < 480) figure.layout.height += 16 * named.length; // the legend's entries stand one above another
  Plotly.newPlot(plot, figure.data, figure.layout, { displayModeBar: false, responsive: true });
}

// Paper has another width than the window, in CSS pixels.
const PAPER_WIDTH = 680;
addEventListener("beforeprint", () => plots.forEach((plot) => Plotly.relayout(plot, { width: PAPER_WIDTH })));
addEventListener("afterprint", () => plots.forEach((plot) => Plotly.relayout(plot, { width: null, autosize: true })));

// Copy buttons appear only where they work.
for (const button of document.querySelectorAll(".copyable button")) {
  if (!navigator.clipboard) break;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
