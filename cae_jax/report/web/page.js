// Fills the page from the report data: tables, charts and images.
"use strict";

const networks = runs.map((run) => readNetwork(run.network));

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
  const shape = `images of ${HEIGHT} x ${WIDTH} x ${CHANNELS}`;
  byId("summary").append(`${names.join(", ")}: trained on ${reportData.dataset}, ${shape}.`);
}

function showResults() {
  const rows = Object.keys(runs[0].results).map((name) => [
    name,
    ...runs.map((run) => run.results[name]),
  ]);
  const heads = ["", ...runs.map((run) => run.name)];
  byId("results").append(table("After the last epoch, on the held-out images", heads, rows));
}

// The members of populations: their losses over epochs and swept values, and their tables.
function showMembers() {
  const section = byId("members");
  if (reportData.populations.length === 0) {
    section.remove();
    document.querySelector('nav a[href="#members"]').remove();
    return;
  }
  const single = (name, points) => ({ name, run: 0, points });
  for (const population of reportData.populations) {
    const { name, headline, curves, panels, settings, members } = population;
    const lines = Object.entries(curves).map(([member, points]) => single(member, points));
    const charts = Object.entries(panels).map(([field, points]) => {
      const dots = points.map((point) => single(`${field} ${point[0]}`, [point]));
      return chart(`val_loss (nats) by ${field}`, dots, { x: field, legend: false });
    });
    section.append(
      element("h3", {}, name),
      element("p", {}, headline),
      element(
        "div",
        { class: "charts" },
        chart("val_loss (nats)", lines, { legend: false }),
        ...charts,
      ),
    );
    if (settings.length > 1)
      section.append(table("Over the seeds", settings[0], settings.slice(1)));
    section.append(details("All members", table(name, members[0], members.slice(1))));
  }
}

// The fields that differ from the defaults, for all runs; the others on demand.
function showConfiguration() {
  const text = (value) => (Array.isArray(value) ? value.join(" ") : String(value ?? "none"));
  const changed = (run, field) => text(run.config[field]) !== text(reportData.defaults[field]);
  const row = (field) => [
    field,
    ...runs.map((run) => ({ text: text(run.config[field]), emphasis: changed(run, field) })),
    text(reportData.defaults[field]),
  ];
  const heads = ["", ...runs.map((run) => run.name), "default"];
  const fields = Object.keys(reportData.defaults);
  const special = fields.filter((field) => runs.some((run) => changed(run, field)));
  const rest = fields.filter((field) => !special.includes(field));
  byId("configuration").append(
    special.length
      ? table("Fields that differ from the defaults, in bold", heads, special.map(row))
      : element("p", {}, "Every field has its default."),
    details(
      `${rest.length} fields at their defaults`,
      table("Fields at their defaults", heads, rest.map(row)),
    ),
  );
}

// The name of what the runs minimised.
function lossName() {
  const names = { bce: "Binary cross-entropy (nats)", mse: "Mean squared error" };
  const losses = new Set(runs.map((run) => run.config.loss));
  return losses.size === 1 ? names[[...losses][0]] : "Loss";
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
      lossName(),
      runs.flatMap((run, i) => [line("loss", run, i, true), line("val_loss", run, i)]),
    ),
    chart(
      "PSNR on the held-out images (dB)",
      runs.map((run, i) => line("val_psnr", run, i)),
    ),
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

// The original images once, then the inputs and reconstructions of each run, compared with those
// that JAX has computed.
function showReconstructions() {
  const section = byId("reconstructions");
  const add = (title, row) => {
    const target = canvas(row.length);
    paint(target, row, title);
    section.append(element("figure", { class: "row" }, element("figcaption", {}, title), target));
  };
  const quality = (row) => decibels(mean(row.map((image, i) => psnr(image, images[i]))));
  let difference = 0;
  add("original", images);
  runs.forEach((run, i) => {
    const inputs = run.inputs === null ? images : split(floatsOf(run.inputs));
    const reconstructed = inputs.map((image) => reconstruct(networks[i], image));
    section.append(element("h3", {}, run.name));
    if (run.inputs !== null) add(`with ${run.noise} noise, mean PSNR ${quality(inputs)}`, inputs);
    add(`reconstruction, mean PSNR ${quality(reconstructed)}`, reconstructed);
    split(floatsOf(run.reconstructions)).forEach((byJax, j) => {
      byJax.forEach((value, k) => {
        difference = Math.max(difference, Math.abs(value - reconstructed[j][k]));
      });
    });
  });
  byId("agreement").append(
    `the largest difference from the pixels computed by JAX is ${difference.toExponential(1)}.`,
  );
}

showSummary();
showResults();
showMembers();
showConfiguration();
showCurves();
showReconstructions();
