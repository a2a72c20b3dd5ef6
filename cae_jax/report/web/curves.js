// Draws line charts as SVG.
"use strict";

const CHART = { width: 380, height: 250, left: 44, right: 8, top: 8, bottom: 40 };

function svgElement(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Round numbers between low and high, about three to seven.
function ticks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((s) => (high - low) / s <= 7);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const value = (first + i) * step;
    return { value, text: value.toFixed(digits) };
  });
}

// The range of the values with a margin on both sides.
function range(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - margin, high + margin];
}

// A chart of lines {name, run, dotted, points: [[x, value]]}, x being whole epochs unless it is
// named. A value that was not finite is null and leaves a gap.
function chart(label, lines, { x: quantity = "epoch", legend = true } = {}) {
  const finite = lines.flatMap((line) => line.points).filter(([, value]) => value !== null);
  if (finite.length === 0) return element("p", {}, `${label}: no epoch is complete yet.`);
  const [x0, x1] = range(finite.map(([epoch]) => epoch));
  const [y0, y1] = range(finite.map(([, value]) => value));
  const { width, height, left, right, top, bottom } = CHART;
  const x = (epoch) => left + ((epoch - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = svgElement("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `${label} by ${quantity}; a table below has the numbers`,
  });
  for (const { value, text } of ticks(y0, y1)) {
    svg.append(
      svgElement("line", {
        class: "grid",
        x1: left,
        x2: width - right,
        y1: y(value),
        y2: y(value),
      }),
      svgElement("text", { x: left - 6, y: y(value) + 4, class: "end" }, text),
    );
  }
  const shown = (tick) => quantity !== "epoch" || Number.isInteger(tick.value);
  for (const { value, text } of ticks(x0, x1).filter(shown)) {
    svg.append(svgElement("text", { x: x(value), y: height - bottom + 18, class: "middle" }, text));
  }
  svg.append(
    svgElement("text", { x: (left + width) / 2, y: height - 4, class: "middle" }, quantity),
    ...lines.map((line) => drawLine(line, x, y, quantity)),
  );
  const items = element("ul", { class: "legend" }, ...(legend ? lines.map(legendItem) : []));
  return element("figure", { class: "chart" }, element("figcaption", {}, label), svg, items);
}

function drawLine(line, x, y, quantity) {
  const group = svgElement("g", { class: lineClass(line) });
  let path = "";
  let pen = "M";
  for (const [epoch, value] of line.points) {
    if (value === null) {
      pen = "M";
      continue;
    }
    path += `${pen}${x(epoch).toFixed(2)} ${y(value).toFixed(2)}`;
    pen = "L";
    const title = svgElement(
      "title",
      {},
      `${line.name}, ${quantity} ${epoch}: ${value.toFixed(4)}`,
    );
    group.append(svgElement("circle", { cx: x(epoch), cy: y(value), r: 2.5 }, title));
  }
  group.prepend(svgElement("path", { d: path }));
  return group;
}

function legendItem(line) {
  const swatch = svgElement(
    "svg",
    { viewBox: "0 0 24 8", class: `swatch ${lineClass(line)}`, "aria-hidden": "true" },
    svgElement("path", { d: "M0 4H24" }),
  );
  return element("li", {}, swatch, line.name);
}

// Eight colors, which repeat.
function lineClass(line) {
  return `line run-${line.run % 8} ${line.dotted ? "dotted" : ""}`;
}
