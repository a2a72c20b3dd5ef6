// Elements of the page: tables, pictures, choices. Text goes in as text and never as HTML, whatever
// a run is called.
"use strict";

// An element with attributes and children, which are elements or text.
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A table in a box that scrolls sideways where it is too wide. Rows are a heading and its cells;
// a cell is text, or {text, emphasis: true}.
function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([heading, ...cells]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, heading),
      ...cells.map((cell) =>
        element("td", {}, cell.emphasis ? element("strong", {}, cell.text) : cell.text ?? cell),
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
  return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, whole);
}

// Details that open on demand.
function details(summary, ...children) {
  return element("details", {}, element("summary", {}, summary), ...children);
}

// A canvas for some pictures side by side, painted by `paint`.
function canvas(count = 1) {
  const gap = 2;
  const width = count * SIDE + (count - 1) * gap;
  return element("canvas", { width, height: SIDE, role: "img" });
}

// Paints images in [0, 1] side by side, one canvas pixel each, and says what they are.
function paint(target, images, label) {
  const context = target.getContext("2d");
  const gap = images.length > 1 ? (target.width - images.length * SIDE) / (images.length - 1) : 0;
  images.forEach((image, i) => {
    const pixels = context.createImageData(SIDE, SIDE);
    image.forEach((value, j) => {
      const grey = Math.round(255 * value);
      pixels.data.set([grey, grey, grey, 255], 4 * j);
    });
    context.putImageData(pixels, i * (SIDE + gap), 0);
  });
  target.setAttribute("aria-label", label);
}

// A canvas with a caption of two lines under it: {figure, paint(image, label, note)}.
function pictureBox(name) {
  const picture = canvas();
  const note = element("span", { class: "note" });
  const figure = element(
    "figure",
    {},
    picture,
    element("figcaption", {}, element("span", { class: "name" }, name), note),
  );
  return {
    figure,
    paint(image, label, text = "") {
      paint(picture, [image], label);
      note.textContent = text;
    },
  };
}

// One of the images to choose: radio buttons that the arrow keys move between.
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
