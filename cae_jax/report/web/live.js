// The two things to play with: the walk between two images, and noise.
"use strict";

// What the walk shows, in numbers: how far from the first image, and a picture for each run.
const walk = { t: 0, pictures: [] };

function startWalk() {
  const codes = networks.map((network) => images.map((image) => encode(network, image)));
  const boxes = runs.map((run) => pictureBox(run.name));
  const faded = pictureBox("faded pixels");
  const show = () => showWalk(codes, boxes, faded);
  byId("walk-images").append(
    imageChoice("from", "walk-from", 0, images, imageNames, show),
    imageChoice("to", "walk-to", 1, images, imageNames, show),
  );
  byId("walk-boxes").append(...boxes.map((box) => box.figure), faded.figure);
  byId("walk-t").addEventListener("input", show);
  show();
}

function showWalk(codes, boxes, faded) {
  const [from, to] = [chosenImage("walk-from"), chosenImage("walk-to")];
  walk.t = Number(byId("walk-t").value);
  walk.pictures = networks.map((network, i) =>
    decode(network, blend(codes[i][from], codes[i][to], walk.t)),
  );
  byId("walk-t-value").textContent = walk.t.toFixed(2);
  const way = `${walk.t.toFixed(2)} of the way from ${imageNames[from]} to ${imageNames[to]}`;
  boxes.forEach((box, i) => {
    const note = `code of ${networks[i].codeSize} values`;
    box.paint(walk.pictures[i], `${runs[i].name} decodes the code ${way}`, note);
  });
  faded.paint(blend(images[from], images[to], walk.t), `pixels ${way}`, "no network");
}

// What the noise shows, in numbers: a clean image, the noisy one, and a picture for each run.
const denoising = { seed: 1, image: null, noisy: null, pictures: [] };

function startNoise() {
  const clean = pictureBox("original");
  const noisy = pictureBox("noisy");
  const boxes = runs.map((run) => pictureBox(run.name));
  const show = () => showNoise(clean, noisy, boxes);
  byId("noise-images").append(imageChoice("image", "noise-image", 0, images, imageNames, show));
  byId("noise-boxes").append(clean.figure, noisy.figure, ...boxes.map((box) => box.figure));
  const kind = byId("noise-kind");
  kind.append(...Object.keys(facts.noises).map((name) => element("option", { value: name }, name)));
  const trained = runs.find((run) => run.noise in facts.noises);
  if (trained) kind.value = trained.noise;
  setLevels(trained?.noise_level);
  kind.addEventListener("change", () => {
    setLevels();
    show();
  });
  byId("noise-level").addEventListener("input", show);
  byId("noise-again").addEventListener("click", () => {
    denoising.seed += 1;
    show();
  });
  show();
}

// Gives the slider the levels of the chosen noise, and its default where none is wanted.
function setLevels(wanted) {
  const noise = facts.noises[byId("noise-kind").value];
  byId("noise-meaning").textContent = noise.meaning;
  const slider = byId("noise-level");
  Object.assign(slider, { min: noise.low, max: noise.high, step: noise.step });
  slider.value = wanted ?? noise.default;
}

function showNoise(clean, noisy, boxes) {
  const chosen = chosenImage("noise-image");
  const image = images[chosen];
  const kind = byId("noise-kind").value;
  const level = Number(byId("noise-level").value);
  denoising.image = image;
  denoising.noisy = corrupt(image, kind, level, denoising.seed);
  denoising.pictures = networks.map((network) => reconstruct(network, denoising.noisy));
  byId("noise-level-value").textContent = String(level);
  const quality = (picture) => decibels(psnr(picture, image));
  clean.paint(image, imageNames[chosen], facts.classes[chosen]);
  const noisyQuality = quality(denoising.noisy);
  noisy.paint(denoising.noisy, `with ${kind} noise, PSNR ${noisyQuality}`, noisyQuality);
  denoising.pictures.forEach((picture, i) => {
    const label = `${runs[i].name} reconstructs it, PSNR ${quality(picture)}`;
    const noise = runs[i].noise === "none" ? "without" : `with ${runs[i].noise}`;
    boxes[i].paint(picture, label, `${quality(picture)}, trained ${noise} noise`);
  });
}

startWalk();
startNoise();
