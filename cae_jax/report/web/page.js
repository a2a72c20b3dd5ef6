// The page: from the facts of the runs, which Python has put into it, to tables, charts, pictures.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const runs = facts.runs;
const networks = runs.map((run) => readNetwork(run.network));
const images = split(Float32Array.from(bytesOf(facts.images), (pixel) => pixel / 255));
const imageNames = facts.classes.map((name, i) => `test image ${i + 1}: ${name}`);

function split(values) {
  const size = SIDE * SIDE;
  const count = values.length / size;
  return Array.from({ length: count }, (_, i) => values.slice(i * size, (i + 1) * size));
}

function byId(id) {
  return document.getElementById(id);
}

function decibels(value) {
  return `${value.toFixed(2)} dB`;
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function showSummary() {
  const names = runs.map((run) => run.name);
  document.title = `${names.join(", ")} - cae-jax report`;
  byId("summary").append(`${names.join(", ")}: trained on ${facts.dataset}.`);
}

function showResults() {
  const rows = Object.keys(runs[0].results).map((name) => [
    name,
    ...runs.map((run) => run.results[name]),
  ]);
  const heads = ["", ...runs.map((run) => run.name)];
  byId("results").append(table("After the last epoch, on the test images", heads, rows));
}

// The fields that some run has changed, side by side; the others on demand.
function showConfiguration() {
  const text = (value) => (Array.isArray(value) ? value.join(" ") : String(value ?? "none"));
  const changed = (run, field) => text(run.config[field]) !== text(facts.defaults[field]);
  const row = (field) => [
    field,
    ...runs.map((run) => ({ text: text(run.config[field]), emphasis: changed(run, field) })),
    text(facts.defaults[field]),
  ];
  const heads = ["", ...runs.map((run) => run.name), "default"];
  const fields = Object.keys(facts.defaults);
  const special = fields.filter((field) => runs.some((run) => changed(run, field)));
  const rest = fields.filter((field) => !special.includes(field));
  byId("configuration").append(
    special.length
      ? table("What differs from the defaults, in bold", heads, special.map(row))
      : element("p", {}, "Every field has its default."),
    details(`${rest.length} fields at their defaults`, table("At their defaults", heads, rest.map(row))),
  );
}

function showCurves() {
  const line = (column, run, i, dotted = false) => ({
    name: `${run.name} ${column}`,
    run: i,
    dotted,
    points: run.history.map((row) => [row.epoch, row[column]]),
  });
  byId("charts").append(
    chart(
      "Binary cross-entropy (nats)",
      runs.flatMap((run, i) => [line("loss", run, i, true), line("val_loss", run, i)]),
    ),
    chart("PSNR on the test images (dB)", runs.map((run, i) => line("val_psnr", run, i))),
  );
  const cell = (value) => (value === null ? "-" : value.toFixed(4));
  const columns = ["loss", "val_loss", "val_psnr"];
  const tables = runs.map((run) =>
    table(
      run.name,
      ["epoch", ...columns],
      run.history.map((row) => [String(row.epoch), ...columns.map((name) => cell(row[name]))]),
    ),
  );
  byId("curves").append(details("The numbers of the curves", ...tables));
}

// The originals once, then what each run gets and makes of it, beside what JAX made of it.
function showPictures() {
  const section = byId("pictures");
  const add = (title, pictures) => {
    const row = canvas(pictures.length);
    paint(row, pictures, title);
    section.append(element("figure", { class: "row" }, element("figcaption", {}, title), row));
  };
  const quality = (pictures) => decibels(mean(pictures.map((each, i) => psnr(each, images[i]))));
  let difference = 0;
  add("original", images);
  runs.forEach((run, i) => {
    const inputs = run.inputs === null ? images : split(floatsOf(run.inputs));
    const pictures = inputs.map((image) => reconstruct(networks[i], image));
    section.append(element("h3", {}, run.name));
    if (run.inputs !== null) add(`with ${run.noise} noise, mean PSNR ${quality(inputs)}`, inputs);
    add(`reconstruction, mean PSNR ${quality(pictures)}`, pictures);
    split(floatsOf(run.reconstructions)).forEach((ofJax, j) => {
      ofJax.forEach((value, k) => {
        difference = Math.max(difference, Math.abs(value - pictures[j][k]));
      });
    });
  });
  byId("agreement").append(
    `no pixel is further than ${difference.toExponential(1)} from what JAX has computed.`,
  );
}

showSummary();
showResults();
showConfiguration();
showCurves();
showPictures();
