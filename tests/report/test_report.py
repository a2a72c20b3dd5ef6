"""The page of a report, in a real browser: what it shows and what its networks compute."""

import base64
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import cae_jax
from cae_jax import cli
from cae_jax.evaluation import comparison, linear
from cae_jax.models import coding, topology
from cae_jax.report import collect, page
from cae_jax.runs import history, tables
from cae_jax.training.search import search
from tests.conftest import DENSE, ROOT, SMALL
from tests.helpers import assert_fails_in_one_line, draw_parameters, nested, numpy_functions
from tests.training.test_rate import RATED

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="no chromium or no chromedriver: apt-get install chromium chromium-driver",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever a page asked of a network would fail, and be in the log.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Float32 sums of up to 784 products differ by some 1e-6 from float64 ones. The rest is room for
# other processors, and still a fortieth of a step of an 8-bit pixel.
TOLERANCE = 1e-4
# Shipped models: a convolutional one with Gaussian noise and a fully connected one without.
RUNS = [Path("pretrained/denoise"), Path("pretrained/simple")]


@pytest.fixture(scope="module")
def report(tmp_path_factory, data_dir) -> Path:
    """What the command writes about both."""
    path = tmp_path_factory.mktemp("report") / "page.html"
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        cli.main(["report", *map(str, RUNS), "--out", str(path), "--data-dir", str(data_dir)])
    assert stdout.getvalue().startswith(f"{path}: ")
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With its path given, selenium looks for no driver.
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, report):
    """The browser with the page, which has no error when it opens and none when the test ends."""
    show(browser, report)
    yield browser
    assert errors(browser) == []


def show(browser, path: Path) -> None:
    browser.get(path.as_uri())
    assert errors(browser) == []


def errors(browser) -> list[str]:
    """The messages in the console since the last call that are worse than warnings."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def number(text: str) -> float:
    return float(re.search(r"-?\d[\d.]*(e-?\d+)?", text)[0])


def array(browser, expression: str, *arguments: object) -> np.ndarray:
    """What a JavaScript expression gives, as float64; arguments are lists."""
    script = f"return Array.from({expression}, (x) => x.length ? Array.from(x) : x)"
    return np.array(browser.execute_script(script, *arguments), np.float64)


def grey(browser, box: str, i: int) -> np.ndarray:
    """The pixels [784] of the canvas number i in a part of the page, in [0, 1]."""
    script = """
const canvas = document.querySelectorAll(`#${arguments[0]} canvas`)[arguments[1]];
return Array.from(canvas.getContext("2d").getImageData(0, 0, 28, 28).data);"""
    pixels = np.array(browser.execute_script(script, box, i)).reshape(784, 4)
    assert (pixels[:, :3] == pixels[:, :1]).all()
    assert (pixels[:, 3] == 255).all()
    return pixels[:, 0] / 255


def notes(browser, box: str) -> list[str]:
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, f"#{box} .note")]


def psnr(picture: np.ndarray, image: np.ndarray) -> float:
    return -10 * np.log10(np.mean((picture - image) ** 2))


@needs_browser
def test_the_page_shows_what_the_runs_left(opened):
    assert opened.title == "denoise, simple - cae-jax report"
    for section in ("members", "bytes"):
        assert not opened.find_elements(By.CSS_SELECTOR, f"#{section}, a[href='#{section}']")
    table = opened.find_element(By.CSS_SELECTOR, "#results table").text
    for run in RUNS:
        with (ROOT / "cae_jax" / run / "history.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        assert f"{float(last['val_loss']):.4f}" in table
        assert f"{float(last['val_psnr']):.2f} dB" in table
    assert "parameters 4,385 50,992" in table
    assert "code 128 (4 x 4 x 8) 32" in table
    assert "epochs 20 of 20, finished 20 of 20, finished" in table
    rows = opened.find_elements(By.CSS_SELECTOR, "#configuration > .wide tbody tr")
    assert "noise gaussian none none" in [row.text for row in rows]
    assert not any(row.text.startswith("seed") for row in rows)
    bold = opened.find_elements(By.CSS_SELECTOR, "#configuration > .wide strong")
    assert [each.text for each in bold].count("gaussian") == 1
    # loss and val_loss of both runs with a mark for each epoch, and val_psnr
    marks = opened.find_elements(By.CSS_SELECTOR, "#charts circle")
    assert len(marks) == 3 * 2 * 20
    assert number(opened.find_element(By.ID, "agreement").text) < TOLERANCE


@needs_browser
def test_the_networks_agree_with_jax(opened, test_images):
    rng = np.random.default_rng(0)
    images = np.concatenate([test_images[:3], test_images[100:103]])
    for i, run in enumerate(RUNS):
        autoencoder = cae_jax.load(run)
        codes = autoencoder.encode(images).reshape(6, -1)
        given = (images.reshape(6, 784) / 255).tolist()
        by_browser = array(opened, f"arguments[0].map((x) => encode(networks[{i}], x))", given)
        np.testing.assert_allclose(by_browser, codes, rtol=TOLERANCE, atol=TOLERANCE)
        # also codes that no image has
        codes = np.concatenate([codes, rng.uniform(0, codes.max(), codes.shape).astype("f")])
        decoded = autoencoder.decode(codes.reshape(-1, *autoencoder.code_shape))
        for name, inputs, expected in (
            ("decode", codes.tolist(), decoded),
            ("reconstruct", given, autoencoder.reconstruct(images)),
        ):
            code = f"arguments[0].map((x) => {name}(networks[{i}], Float32Array.from(x)))"
            pictures = array(opened, code, inputs)
            np.testing.assert_allclose(pictures, expected.reshape(-1, 784), atol=TOLERANCE)


@needs_browser
@pytest.mark.parametrize(
    ("shape", "architecture"),
    [
        ((28, 28, 1), {"features": (5, 4, 3)}),
        ((28, 28, 1), {"model": "deep"}),
        ((32, 32, 3), {"features": (5,)}),
        ((30, 27, 3), {"features": (4, 3, 2)}),  # different padding of rows and columns, a crop
        ((47, 61, 3), {"features": (4, 3, 3, 2)}),
        ((5, 9, 4), {"features": (2, 3, 2, 3, 2, 4)}),
        ((9, 7, 3), {"model": "simple"}),
    ],
)
def test_any_architecture(opened, shape, architecture):
    config = dataclasses.replace(SMALL, data="arrays", image_shape=shape, **architecture)
    drawn = draw_parameters(topology.from_config(config))
    functions = numpy_functions(drawn, shape)
    images = np.random.default_rng(1).random((2, *shape), np.float32)
    packed = collect.network(topology.from_config(config), nested(drawn))
    given = images.reshape(2, -1).tolist()
    for name in ("encode", "reconstruct"):
        expected = functions[name](images.astype(np.float64)).reshape(2, -1)
        assert expected.std() > 0.02
        code = f"arguments[1].map((x) => {name}(readNetwork(arguments[0]), Float32Array.from(x)))"
        shown = array(opened, code, packed, given)
        np.testing.assert_allclose(shown, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@needs_browser
def test_a_run_on_colored_images_without_classes(browser, color_run, tmp_path, monkeypatch):
    run, images = color_run[0], color_run[1][20:]
    monkeypatch.setattr(collect.data, "load_split", lambda *_, **__: (images, None))
    monkeypatch.setattr(collect.data, "class_names", lambda *_, **__: ())
    page.write(tmp_path / "page.html", collect.collect([run]))
    show(browser, tmp_path / "page.html")
    assert number(browser.find_element(By.ID, "agreement").text) < TOLERANCE
    thumbs = browser.find_elements(By.CSS_SELECTOR, "#noise-images label")
    assert [each.get_attribute("title") for each in thumbs] == [f"image {i}" for i in range(1, 11)]
    pixels = """
const canvas = document.querySelectorAll(`#noise-boxes canvas`)[arguments[0]];
return Array.from(canvas.getContext("2d").getImageData(0, 0, 10, 13).data);"""
    clean, noisy = (np.array(browser.execute_script(pixels, i)).reshape(13, 10, 4) for i in (0, 1))
    np.testing.assert_array_equal(clean[..., :3], images[0])
    changed = (noisy != clean).any(axis=-1)
    assert 0.1 < changed.mean() < 0.5
    replaced = noisy[changed][:, :3]  # whole pixels
    assert {tuple(pixel) for pixel in replaced.tolist()} == {(0, 0, 0), (255, 255, 255)}
    kind = Select(browser.find_element(By.ID, "noise-kind"))
    kind.select_by_value("occlusion")
    level = browser.find_element(By.ID, "noise-level")
    assert (level.get_attribute("value"), level.get_attribute("max")) == ("5", "10")
    noisy = np.array(browser.execute_script(pixels, 1)).reshape(13, 10, 4)
    assert ((noisy != clean).any(axis=-1)).sum() == 25
    assert errors(browser) == []


@needs_browser
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colors(browser, report, tmp_path, channels):
    """Images of 2 x 3 pixels in gray, RGB or RGBA, opaque, on a canvas."""
    data = json.loads(re.search(r'id="report-data">(.*)</script>', report.read_text())[1])
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (2, 3, channels), np.uint8)
    image[..., 3:] = 255
    data |= {"image_shape": [2, 3, channels], "images": base64.b64encode(image).decode()}
    data |= {"classes": ["one"], "runs": []}
    (tmp_path / "page.html").write_text(page.render(data))
    browser.get((tmp_path / "page.html").as_uri())
    script = """
const target = canvas();
paint(target, images, "");
return Array.from(target.getContext("2d").getImageData(0, 0, 3, 2).data);"""
    shown = np.array(browser.execute_script(script)).reshape(2, 3, 4)
    np.testing.assert_array_equal(shown[..., :3], image[..., :3] + np.zeros(3, np.uint8))
    np.testing.assert_array_equal(shown[..., 3], 255)
    errors(browser)  # a page without runs has some


@needs_browser
def test_the_slider_walks_through_code_space(opened, test_images):
    slider = opened.find_element(By.ID, "walk-t")
    opened.find_element(By.CSS_SELECTOR, "input[name=walk-from][value='2']").send_keys(Keys.SPACE)
    opened.find_element(By.CSS_SELECTOR, "input[name=walk-to][value='7']").send_keys(Keys.SPACE)
    autoencoders = [cae_jax.load(run) for run in RUNS]
    before = None
    for keys, t in ((Keys.HOME, 0.0), (Keys.ARROW_RIGHT * 30, 0.3), (Keys.END, 1.0)):
        slider.send_keys(keys)
        assert opened.find_element(By.ID, "walk-t-value").text == f"{t:.2f}"
        for i, autoencoder in enumerate(autoencoders):
            start, end = autoencoder.encode(test_images[[2, 7]])
            (expected,) = autoencoder.decode(((1 - t) * start + t * end)[None])
            shown = array(opened, f"walk.decoded[{i}]")
            np.testing.assert_allclose(shown, expected.ravel(), atol=TOLERANCE)
            # An 8-bit canvas rounds by up to half a step.
            np.testing.assert_allclose(grey(opened, "walk-boxes", i), shown, atol=0.51 / 255)
        faded = (1 - t) * test_images[2] / 255 + t * (test_images[7] / 255)
        np.testing.assert_allclose(grey(opened, "walk-boxes", 2), faded.ravel(), atol=0.51 / 255)
        now = grey(opened, "walk-boxes", 0)
        assert before is None or np.abs(now - before).mean() > 0.01
        before = now


@pytest.mark.slow
@needs_browser
def test_the_slider_for_bytes(browser, shared_run, data_dir, test_images, tmp_path):
    """Of the runs with a rate; the page of others has none."""
    rated = shared_run("rated", RATED)
    data = collect.collect([RUNS[1], rated], data_dir=data_dir)
    page.write(tmp_path / "page.html", data)
    show(browser, tmp_path / "page.html")
    quality = browser.find_element(By.ID, "bytes-quality")
    browser.find_element(By.CSS_SELECTOR, "input[name=bytes-image][value='3']").send_keys(
        Keys.SPACE
    )
    autoencoder, image = cae_jax.load(rated), test_images[3].ravel() / 255
    assert browser.find_element(By.ID, "bytes-quality-value").text == "5"  # of the training
    sizes = {}
    for keys, expected in ((Keys.HOME, 1), (Keys.END, 7)):
        quality.send_keys(keys)
        assert browser.find_element(By.ID, "bytes-quality-value").text == str(expected)
        found = tables.read(rated, autoencoder)[expected]
        codes = search(autoencoder, found, test_images[:10], sweeps=1)[3:4]
        decoded = autoencoder.decode(found.step * codes.astype(np.float32)).ravel()
        np.testing.assert_allclose(array(browser, "bytes.decoded[0]"), decoded, atol=TOLERANCE)
        assert len(browser.find_elements(By.CSS_SELECTOR, "#bytes-boxes canvas")) == 2
        np.testing.assert_allclose(grey(browser, "bytes-boxes", 1), decoded, atol=0.51 / 255)
        sizes[expected] = len(coding.encode(codes, found))
        first, second = notes(browser, "bytes-boxes")
        assert first == "784 bytes"
        assert second == f"{sizes[expected]} bytes, PSNR {psnr(decoded, image):.2f} dB"
    assert sizes[1] < sizes[7]
    assert errors(browser) == []


@needs_browser
def test_noise_is_added_and_removed(opened, test_images):
    level, kind = (opened.find_element(By.ID, f"noise-{name}") for name in ("level", "kind"))
    # The noise of the run that was trained with any.
    assert (kind.get_attribute("value"), level.get_attribute("value")) == ("gaussian", "0.5")
    opened.find_element(By.CSS_SELECTOR, "input[name=noise-image][value='3']").send_keys(Keys.SPACE)
    image = test_images[3].ravel() / 255
    autoencoders = [cae_jax.load(run) for run in RUNS]

    def check() -> float:
        noisy = array(opened, "denoising.noisy")
        pictures = array(opened, "denoising.reconstructed")
        for picture, autoencoder in zip(pictures, autoencoders, strict=True):
            expected = autoencoder.reconstruct(noisy.reshape(1, 28, 28)).ravel()
            np.testing.assert_allclose(picture, expected, atol=TOLERANCE)
        for i, shown in enumerate([image, noisy, *pictures]):
            np.testing.assert_allclose(grey(opened, "noise-boxes", i), shown, atol=0.51 / 255)
        texts = notes(opened, "noise-boxes")[1:]
        for text, shown in zip(texts, [noisy, *pictures], strict=True):
            assert number(text) == pytest.approx(psnr(shown, image), abs=0.0051)  # two decimals
        return number(texts[0])

    first = check()
    level.send_keys(Keys.ARROW_RIGHT * 20)
    assert opened.find_element(By.ID, "noise-level-value").text == "0.7"
    assert check() < first - 0.5
    drawn = array(opened, "denoising.noisy")
    opened.find_element(By.ID, "noise-again").click()
    check()
    assert np.mean(array(opened, "denoising.noisy") != drawn) > 0.5
    for name in ("salt_and_pepper", "masking", "speckle", "poisson", "occlusion"):
        Select(kind).select_by_value(name)
        assert check() < 40


# Grey of 0.5; 40,000 pixels, so that four standard errors are about 0.02 of a standard deviation.
@needs_browser
@pytest.mark.parametrize(
    ("kind", "level", "mean", "std"),
    [
        ("gaussian", 0.1, 0.5, 0.1),
        ("speckle", 0.2, 0.5, 0.1),  # the factor's deviation times the grey
        ("poisson", 30, 0.5, np.sqrt(15) / 30),  # variance of a count = its mean
        ("salt_and_pepper", 0.3, 0.5, np.sqrt(0.3 * 0.25)),  # 0.15 each at a distance of 0.5
        ("masking", 0.3, 0.35, 0.5 * np.sqrt(0.3 * 0.7)),
    ],
)
def test_the_noise_has_its_level(opened, kind, level, mean, std):
    drawn = f"corrupt(new Float32Array(40000).fill(0.5), '{kind}', {level}, 7)"
    noisy = array(opened, drawn)
    assert noisy.mean() == pytest.approx(mean, abs=4 * std / 200)
    assert noisy.std() == pytest.approx(std, rel=0.02)
    np.testing.assert_array_equal(array(opened, drawn), noisy)
    # neighbours have nothing to do with each other: within four standard errors of 0
    assert abs(np.corrcoef(noisy[:-1], noisy[1:])[0, 1]) < 4 / 200


@needs_browser
def test_the_square_lies_within_the_image(opened):
    corners = []
    for seed in range(20):
        noisy = array(opened, f"corrupt(new Float32Array(784).fill(1), 'occlusion', 12, {seed})")
        rows, columns = np.nonzero(noisy.reshape(28, 28) == 0)
        assert len(rows) == 144
        assert np.ptp(rows) == np.ptp(columns) == 11
        corners.append((rows[0], columns[0]))
    assert np.ptp(corners, axis=0).min() >= 10  # of 16, the corners being 0 to 16


@pytest.mark.parametrize(
    ("old", "backend"), [("conv", "xla"), ("phase", "matmul"), ("fused", "native")]
)
def test_the_backend_of_a_run(run, tmp_path, data_dir, old, backend):
    """Also of a run from before backends were called so."""
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    for name in ("backend", "method"):
        result.pop(name, None)
    for entry in ({"backend": backend}, {"method": old}):
        path.write_text(json.dumps(result | entry))
        collected = collect.collect([tmp_path / "run"], data_dir=data_dir)
        assert collected["runs"][0]["results"]["backend"] == backend


def test_principal_components_stand_beside_a_run(dense_run, data_dir, test_images, monkeypatch):
    results = collect.collect([dense_run], data_dir=data_dir)["runs"][0]["results"]
    train, _ = cae_jax.data.load_split(DENSE, "train", data_dir=data_dir)
    flat, tested = (x.reshape(len(x), -1) / 255 for x in (train[:1000], test_images[:300]))
    basis = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:32].T
    outputs = np.clip((tested - flat.mean(0)) @ basis @ basis.T + flat.mean(0), 0, 1)
    psnr = -10 * np.log10(np.square(outputs - tested).mean(1)).mean()
    assert float(results["PCA, val_psnr"].removesuffix(" dB")) == pytest.approx(psnr, abs=0.02)
    assert results["PCA, parameters"] == f"{784 * 33:,}"
    monkeypatch.setattr(linear, "is_cheap", lambda *_: False)
    there = collect.collect([dense_run], data_dir=data_dir)["runs"][0]["results"]
    assert "PCA, val_psnr" not in there


@pytest.mark.slow
def test_the_inputs_are_those_of_the_validation(test_images, data_dir):
    noisy, clean = collect.collect(RUNS, data_dir=data_dir)["runs"]
    assert clean["inputs"] is None
    inputs = np.frombuffer(base64.b64decode(noisy["inputs"]), "<f4")
    expected = comparison.noisy_images(test_images, "gaussian", 0.5, 0)[:10]
    # All 10,000 at once may be rounded in another way.
    np.testing.assert_allclose(inputs, expected.ravel(), atol=1e-6)


@needs_browser
def test_it_needs_nothing_else_and_may_have_nothing_else(browser, report):
    text = report.read_text("ascii")
    namespaces = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"\w+://[^\"'\s`]*", text)) == namespaces
    assert not re.search(r"\b(src|srcset|action)\s*=|@import|url\(|<link(?! rel=\"icon\")", text)
    show(browser, report)
    entries = "return performance.getEntriesByType('resource').length"
    assert browser.execute_script(entries) == 0
    refused = """
const done = arguments[0];
document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
fetch("http://127.0.0.1:1/").catch(() => {});"""
    assert browser.execute_async_script(refused) == "connect-src"
    # which also shows that the console is heard
    assert any("Content Security Policy" in message for message in errors(browser))


@needs_browser
def test_it_can_be_read_by_all(opened):
    unlabelled = """
return [...document.querySelectorAll("input, select, canvas, svg:not([aria-hidden])")].filter(
  (node) => !node.getAttribute("aria-label") && !node.labels?.[0]?.textContent.trim()
).length"""
    assert opened.execute_script(unlabelled) == 0
    paper = "return getComputedStyle(document.body).backgroundColor"
    brightness = {}
    for theme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        brightness[theme] = number(opened.execute_script(paper))
    assert brightness["dark"] < 60 < 200 < brightness["light"]
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    width = "return document.documentElement.scrollWidth"
    assert opened.execute_script(width) == 360
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_names_stay_text(browser, run, tmp_path, data_dir):
    # Where the last folders share their names, those before them tell the runs apart.
    names = [f"{first}/script><b id=broken>$data&amp;/same" for first in ("a<", "b")]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.symlink_to(run)
    page.write(tmp_path / "page.html", collect.collect(paths, data_dir=data_dir))
    assert (tmp_path / "page.html").read_text().count("</script>") == 1 + len(page.SCRIPTS)
    show(browser, tmp_path / "page.html")
    assert browser.find_elements(By.ID, "broken") == []
    assert f"{names[0]}, {names[1]}: trained" in browser.find_element(By.ID, "summary").text


@needs_browser
def test_a_run_that_is_not_finished(browser, run, tmp_path, data_dir, monkeypatch):
    # Its checkpoints are those of the finished one: the file alone says how far it has come.
    monkeypatch.setattr(collect.history, "of_run", lambda run: history.read(run / "history.csv"))
    shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("result.json"))
    rows = tmp_path / "begun" / "history.csv"
    header, first, second, _ = rows.read_text().splitlines(keepends=True)
    lost = second.split(",")
    lost[2] = "nan"
    pages = {"1 of 3, unfinished": header + first, "2 of 3": header + first + ",".join(lost)}
    for state, text in ({"0 of 3, unfinished": header} | pages).items():
        rows.write_text(text)
        page.write(tmp_path / "page.html", collect.collect([tmp_path / "begun"], data_dir=data_dir))
        show(browser, tmp_path / "page.html")
        assert state in browser.find_element(By.CSS_SELECTOR, "#results table").text
        marks = browser.find_elements(By.CSS_SELECTOR, "#charts circle")
        assert len(marks) == {"0": 0, "1": 3, "2": 5}[state[0]]  # one less: a loss is lost
        assert len(browser.find_elements(By.CSS_SELECTOR, "#walk-boxes canvas")) == 2


def test_the_command_refuses_in_one_line(refuse, tmp_path):
    assert_fails_in_one_line(refuse("report", "nowhere"), "nowhere is not a run directory")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_shown(run, tmp_path, data_dir, monkeypatch):
    with pytest.raises(cae_jax.UserError, match="`runs` is empty"):
        collect.collect([])
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "result.json").write_text("[]")
    with pytest.raises(cae_jax.UserError, match=r"result\.json cannot be read .*not a JSON object"):
        collect.collect([copy], data_dir=data_dir)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(cae_jax.UserError, match="no checkpoint yet"):
        collect.collect([copy], data_dir=data_dir)
    config = (run / "config.json").read_text().replace("fashion_mnist", "kmnist")
    (copy / "config.json").write_text(config)
    with pytest.raises(
        cae_jax.UserError, match="with data fashion_mnist and kmnist; give runs of one data set"
    ):
        collect.collect([run, copy], data_dir=data_dir)
    monkeypatch.setattr(collect, "MAX_PARAMETERS", 8769)
    with pytest.raises(cae_jax.UserError, match="8,770 parameters, a page takes at most 8,769"):
        collect.collect([run, run], data_dir=data_dir)


@pytest.mark.parametrize("name", [".", "/dev/null", "nowhere/page.html"])
def test_a_page_is_a_file(name):
    with pytest.raises(cae_jax.UserError, match=f"^{name} cannot be written .*; give a file"):
        page.write(name, {})


@pytest.mark.slow
@needs_browser
def test_a_population_is_shown_by_its_members(browser, tmp_path, data_dir):
    """Two settings of a dense model with two seeds each, and one that diverges."""
    base = dataclasses.replace(DENSE, train_examples=320, batch_size=16, epochs=1)
    values = [*itertools.product((1e-3, 1e-2), (0, 1)), (1e37, 0)]
    configs = [dataclasses.replace(base, learning_rate=r, seed=seed) for r, seed in values]
    result = cae_jax.fit_population(configs, tmp_path / "many", data_dir=data_dir)
    losses = {name: member.val_loss for name, member in result.members.items()}
    ranked = sorted(result.autoencoders, key=losses.__getitem__)
    assert len(ranked) == 4
    found = collect.collect([tmp_path / "many"], data_dir=data_dir)
    assert [run["name"] for run in found["runs"]] == [ranked[0], ranked[2], ranked[3]]
    page.write(tmp_path / "page.html", found)
    show(browser, tmp_path / "page.html")
    section = browser.find_element(By.ID, "members")
    assert f"Best: {ranked[0]}, val_loss {losses[ranked[0]]:.4f}." in section.text
    charts = section.find_elements(By.CSS_SELECTOR, ".chart")
    assert [len(each.find_elements(By.CSS_SELECTOR, "circle")) for each in charts] == [4, 4]
    assert "val_loss (nats) by learning_rate" in charts[1].text
    settings, every = section.find_elements(By.CSS_SELECTOR, "table")
    assert len(settings.find_elements(By.CSS_SELECTOR, "tbody tr")) == 2
    section.find_element(By.CSS_SELECTOR, "summary").click()
    rows = [row.text for row in every.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert rows[0].startswith(f"{ranked[0]} 1 {losses[ranked[0]]:.4f}")
    assert ["not finite at step" in row for row in rows] == [False] * 4 + [True]
    for name in ranked[1:]:  # as in a population that is still training
        shutil.rmtree(tmp_path / "many" / name)
    found = collect.collect([tmp_path / "many"], data_dir=data_dir)
    assert [run["name"] for run in found["runs"]] == ranked[:1]
    shutil.rmtree(tmp_path / "many" / ranked[0])
    with pytest.raises(cae_jax.UserError, match="has completed an epoch"):
        collect.collect([tmp_path / "many"], data_dir=data_dir)
