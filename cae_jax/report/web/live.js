// The interactive sections: the walk between two images, bytes and quality, and noise.
"use strict";

// The state of the walk: its position from 0 to 1 and the decoded image of each run.
const walk = { t: 0, decoded: [] };

function startWalk() {
  const codes = networks.map((network) => images.map((image) => encode(network, image)));
  const boxes = runs.map((run) => imageBox(run.name));
  const faded = imageBox("faded pixels");
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
  walk.decoded = networks.map((network, i) =>
    decode(network, blend(codes[i][from], codes[i][to], walk.t)),
  );
  byId("walk-t-value").textContent = walk.t.toFixed(2);
  const way = `${walk.t.toFixed(2)} of the way from ${imageNames[from]} to ${imageNames[to]}`;
  boxes.forEach((box, i) => {
    const note = `code of ${codes[i][from].length} values`;
    box.paint(walk.decoded[i], `${runs[i].name} decodes the code ${way}`, note);
  });
  faded.paint(blend(images[from], images[to], walk.t), `pixels ${way}`, "no network");
}

// The state of the bytes section: the decoded image of each network with compressed codes.
const bytes = { decoded: [] };

function startBytes() {
  const coded = runs.flatMap((run, i) =>
    run.compressed === null ? [] : [{ ...run, network: networks[i] }],
  );
  if (coded.length === 0) {
    byId("bytes").remove();
    document.querySelector('nav a[href="#bytes"]').remove();
    return;
  }
  const original = imageBox("original");
  const boxes = coded.map((run) => imageBox(run.name));
  const show = () => showBytes(coded, original, boxes);
  byId("bytes-images").append(imageChoice("image", "bytes-image", 0, images, imageNames, show));
  byId("bytes-boxes").append(original.figure, ...boxes.map((box) => box.figure));
  const slider = byId("bytes-quality");
  slider.max = coded[0].compressed.length - 1;
  slider.value = coded[0].compressed.findIndex((each) => each.trained);
  slider.addEventListener("input", show);
  show();
}

function showBytes(coded, original, boxes) {
  const chosen = chosenImage("bytes-image");
  const image = images[chosen];
  const place = Number(byId("bytes-quality").value);
  original.paint(image, imageNames[chosen], `${image.length} bytes`);
  byId("bytes-quality-value").textContent = String(coded[0].compressed[place].quality);
  bytes.decoded = coded.map((run, i) => {
    const { codes, sizes } = run.compressed[place];
    const values = floatsOf(codes);
    const length = values.length / images.length;
    const code = values.slice(chosen * length, (chosen + 1) * length);
    const decoded = decode(run.network, code);
    const text = `${sizes[chosen]} bytes, PSNR ${decibels(psnr(decoded, image))}`;
    boxes[i].paint(decoded, `${run.name} decodes ${text}`, text);
    return decoded;
  });
}

// The state of the noise section: the noisy image and its reconstruction by each run.
const denoising = { seed: 1, noisy: null, reconstructed: [] };

function startNoise() {
  const clean = imageBox("original");
  const noisy = imageBox("noisy");
  const boxes = runs.map((run) => imageBox(run.name));
  const show = () => showNoise(clean, noisy, boxes);
  byId("noise-images").append(imageChoice("image", "noise-image", 0, images, imageNames, show));
  byId("noise-boxes").append(clean.figure, noisy.figure, ...boxes.map((box) => box.figure));
  const kind = byId("noise-kind");
  kind.append(
    ...Object.keys(reportData.noises).map((name) => element("option", { value: name }, name)),
  );
  const trained = runs.find((run) => run.noise in reportData.noises);
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

// Sets the slider's range for the chosen noise, and its position: a level, or else the default.
function setLevels(level) {
  const noise = reportData.noises[byId("noise-kind").value];
  byId("noise-meaning").textContent = noise.meaning;
  const slider = byId("noise-level");
  Object.assign(slider, { min: noise.low, max: noise.high, step: noise.step });
  slider.value = level ?? noise.default;
}

function showNoise(clean, noisy, boxes) {
  const chosen = chosenImage("noise-image");
  const image = images[chosen];
  const kind = byId("noise-kind").value;
  const level = Number(byId("noise-level").value);
  denoising.noisy = corrupt(image, kind, level, denoising.seed);
  denoising.reconstructed = networks.map((network) => reconstruct(network, denoising.noisy));
  byId("noise-level-value").textContent = String(level);
  const quality = (shown) => decibels(psnr(shown, image));
  clean.paint(image, imageNames[chosen], classes[chosen]);
  const noisyQuality = quality(denoising.noisy);
  noisy.paint(denoising.noisy, `with ${kind} noise, PSNR ${noisyQuality}`, noisyQuality);
  denoising.reconstructed.forEach((reconstructed, i) => {
    const label = `${runs[i].name} reconstructs it, PSNR ${quality(reconstructed)}`;
    const noise = runs[i].noise === "none" ? "without" : `with ${runs[i].noise}`;
    boxes[i].paint(reconstructed, label, `${quality(reconstructed)}, trained ${noise} noise`);
  });
}

startWalk();
startBytes();
startNoise();
