// Builds the elements of the page: tables, images, choices. Text is inserted as text and never as
// HTML, whatever the name of a run.
"use strict";

// An element with attributes; its children are elements or text.
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A table in a box that scrolls sideways if it is too wide. A row is a heading followed by cells;
// a cell is text, or {text, emphasis: true}.
function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([heading, ...cells]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, heading),
      ...cells.map((cell) =>
        element("td", {}, cell.emphasis ? element("strong", {}, cell.text) : (cell.text ?? cell)),
      ),
    ),
  );
  const whole = element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, head),
    element("tbody", {}, ...body),
  );
  // Focusable, so that the arrow keys scroll it.
  return element(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    whole,
  );
}

// Details that open on demand.
function details(summary, ...children) {
  return element("details", {}, element("summary", {}, summary), ...children);
}

// A canvas for images side by side, to be painted by `paint`.
function canvas(count = 1) {
  const gap = 2;
  const width = count * WIDTH + (count - 1) * gap;
  return element("canvas", { width, height: HEIGHT, role: "img" });
}

// Paints images side by side, one canvas pixel per image pixel, and labels the canvas.
function paint(target, images, label) {
  const context = target.getContext("2d");
  const gap = images.length > 1 ? (target.width - images.length * WIDTH) / (images.length - 1) : 0;
  images.forEach((image, i) => {
    const pixels = context.createImageData(WIDTH, HEIGHT);
    for (let j = 0; j < WIDTH * HEIGHT; j++) pixels.data.set(colorOf(image, j), 4 * j);
    context.putImageData(pixels, i * (WIDTH + gap), 0);
  });
  target.setAttribute("aria-label", label);
}

// Red, green, blue and alpha of pixel j; an image has 1 channel (gray), 3 (RGB) or 4 (RGBA).
function colorOf(image, j) {
  const channels = image.subarray(j * CHANNELS, (j + 1) * CHANNELS);
  const [red, green = red, blue = red, alpha = 255] = Array.from(channels, (value) =>
    Math.round(255 * value),
  );
  return [red, green, blue, alpha];
}

// A canvas above a caption of two lines: {figure, paint(image, label, note)}.
function imageBox(name) {
  const target = canvas();
  const note = element("span", { class: "note" });
  const figure = element(
    "figure",
    {},
    target,
    element("figcaption", {}, element("span", { class: "name" }, name), note),
  );
  return {
    figure,
    paint(image, label, text = "") {
      paint(target, [image], label);
      note.textContent = text;
    },
  };
}

// A choice of one image: radio buttons, operated by the arrow keys too.
function imageChoice(legend, name, chosen, images, labels, onChange) {
  const buttons = images.map((image, i) => {
    const button = element("input", { type: "radio", name, value: i, "aria-label": labels[i] });
    button.checked = i === chosen;
    button.addEventListener("change", onChange);
    const thumb = canvas();
    paint(thumb, [image], labels[i]);
    return element("label", { title: labels[i] }, button, thumb);
  });
  return element(
    "fieldset",
    { class: "choice" },
    element("legend", {}, legend),
    element("div", { class: "thumbs" }, ...buttons),
  );
}

function chosenImage(name) {
  return Number(document.querySelector(`input[name="${name}"]:checked`).value);
}
