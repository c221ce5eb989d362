"""A headless Chromium that opens puzzle_visualizer.html from file://, as a reader of the project would."""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.launch import ROOT
from tests.waiting import wait_for

PAGE = (ROOT / "puzzle_visualizer.html").as_uri()
SCREENSHOTS = Path(os.environ.get("VISUALIZER_SCREENSHOTS") or ROOT / "tests" / "artefacts")
REMEDY = "Chromium and its driver are missing; on Debian: apt-get install chromium chromium-driver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)

# Pictures of texts are compared as shares of ink on a raster of 12×12 over the box that the ink fills, and by its
# shape.
READ_CELLS = """
const [board, columns, words, canvases] = arguments, canvas = document.querySelectorAll(canvases)[board];
const unit = canvas.width / columns, size = 12, family = getComputedStyle(document.body).fontFamily;
const hex = ([red, green, blue]) => "#" + [red, green, blue].map(part => part.toString(16).padStart(2, "0")).join("");
const copyOf = (width, height, draw) => {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  draw(context);
  const { data } = context.getImageData(0, 0, width, height);
  return (x, y) => data.subarray(4 * (Math.floor(y) * width + Math.floor(x)));
};
const raster = (width, height, share) => {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    if (share(x, y) > .5) [left, top, right, bottom] =
      [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  }
  if (right < 0) return null;
  const [w, h] = [right + 1 - left, bottom + 1 - top];
  const cells = Array.from({ length: size * size }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < 9; k++) sum += share(left + Math.floor((i % size + (k % 3 + .5) / 3) * w / size),
      top + Math.floor((Math.floor(i / size) + (Math.floor(k / 3) + .5) / 3) * h / size));
    return sum / 9;
  });
  return { cells, shape: Math.log(w / h) };
};
const models = words.flatMap(word => [400, 700].map(weight => {
  const pixel = copyOf(400, 200, context => {
    context.font = `${weight} 100px ${family}`;
    context.fillText(word, 20, 150);
  });
  return { word, ...raster(400, 200, (x, y) => pixel(x, y)[3] / 255) };
}));
const pixel = copyOf(canvas.width, canvas.height, context => context.drawImage(canvas, 0, 0));
return Array.from({ length: columns * canvas.height / unit }, (_, cell) => {
  const [x0, y0] = [cell % columns * unit, Math.floor(cell / columns) * unit];
  const ground = pixel(x0 + .12 * unit, y0 + .12 * unit);
  const [left, top, width, height] = [.12, .12, .74, .7].map(share => Math.round(share * unit));
  const difference = (x, y) => {
    const here = pixel(x0 + left + x, y0 + top + y);
    return [0, 1, 2].reduce((sum, i) => sum + Math.abs(here[i] - ground[i]), 0);
  };
  let most = 0, ink = null;
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    if (difference(x, y) > most) [most, ink] = [difference(x, y), hex(pixel(x0 + left + x, y0 + top + y))];
  }
  const mark = hex(pixel(x0 + .5 * unit, y0 + .86 * unit));
  if (most < 60) return { text: "", ground: hex(ground), ink: null, mark };
  const seen = raster(width, height, (x, y) => difference(x, y) / most);
  const distance = model => model.cells.reduce((sum, share, i) => sum + (share - seen.cells[i]) ** 2, 0) +
    20 * (model.shape - seen.shape) ** 2;
  const text = models.sort((a, b) => distance(a) - distance(b))[0].word;
  return { text, ground: hex(ground), ink, mark };
});
"""


# Comparing alone reads streams. `reading` counts the reads that were held: a script runs only where no promise is left
# to go on with, so that with none of them whatever waited for them has come to its end.
HOLD_READS = """
const [path, method] = arguments, real = Blob.prototype[method];
const gate = new Promise(done => { window.letRead = done; });
window.reading = 0;
const held = async read => {
  reading++;
  try {
    await gate;
    return await read();
  } finally {
    reading--;
  }
};
File.prototype.slice = function (...range) {
  const part = Blob.prototype.slice.apply(this, range);
  if (!this.webkitRelativePath.includes(path)) return part;
  part[method] = method === "arrayBuffer" ? () => held(() => real.call(part)) : () => ({ getReader: options => {
    let reader;
    return { read: view => held(() => (reader ??= real.call(part).getReader(options)).read(view)) };
  } });
  return part;
};
"""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """The browser; without one the test fails where CI is set, and is skipped elsewhere."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(REMEDY)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


class Page:
    """The visualizer in a browser: what a user does with it, and what they see."""

    _loads = itertools.count()

    def __init__(self, browser: webdriver.Chrome):
        self.browser = browser

    @classmethod
    def checked(cls, browser: webdriver.Chrome) -> Iterator["Page"]:
        """For a fixture: a page after whose test the console must be empty, with nothing fetched."""
        page = cls(browser)
        page.console()  # of the test before
        yield page
        errors, fetched = (
            page.console(),
            page.js("return performance.getEntriesByType('resource').map(({name}) => name)"),
        )
        assert not errors, errors
        assert not fetched, fetched

    def load(self, fragment: str = "", *, width: int = 1280, height: int = 860, dark: bool = False) -> "Page":
        """A fresh page, in a window of this size."""
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        self.cdp("Emulation.setEmulatedMedia", features=scheme)
        self.resize(width, height)
        # Another query each time: a new fragment alone would not load the page anew.
        self.browser.get(f"{PAGE}?{next(self._loads)}" + (f"#{fragment}" if fragment else ""))
        return self

    def resize(self, width: int, height: int) -> None:
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)

    def cdp(self, command: str, **parameters) -> dict:
        return self.browser.execute_cdp_cmd(command, parameters)

    def js(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return Array.from(document.querySelectorAll(arguments[0]), node => node.textContent)", selector)

    def visible(self, selector: str) -> bool:
        return self.js("return document.querySelector(arguments[0])?.checkVisibility() ?? false", selector)

    def wait(self, condition, what: object = "the page") -> None:
        """Until the condition holds; a failure says `what` did not come, and what the page showed in its place."""
        wait_for(condition, lambda: f"{what}\n{self.js('return document.body?.innerText')}", pause=0.02)

    def settle(self) -> None:
        """Until the place that was last asked for is read and painted."""
        self.wait(
            lambda: self.js("return document.querySelector('#boards').ariaBusy !== 'true'"), "the boards stay busy"
        )

    def choose(self, folder: Path) -> None:
        """Choose a folder in the file chooser."""
        self.find("#folder").send_keys(str(folder))

    def choose_file(self, path: Path) -> None:
        """Choose a file of votes in its file chooser."""
        self.find("#file").send_keys(str(path))

    def open(self, folder: Path) -> "Page":
        """Choose a dataset's folder, and wait until a puzzle is shown."""
        self.choose(folder)
        self.wait(self.boards, "no board appears")
        self.settle()
        return self

    def drop(self, folder: Path) -> None:
        """Drop a folder or a file on the page, by the browser's own drag events."""
        for kind in ("dragEnter", "dragOver", "drop"):
            data = dict(items=[], files=[str(folder)], dragOperationsMask=1)
            self.cdp("Input.dispatchDragEvent", type=kind, x=200, y=300, data=data)

    def go(self, fragment: str) -> None:
        """Edit the address."""
        self.browser.execute_async_script(
            "const [fragment, done] = arguments; addEventListener('hashchange', () => done(), { once: true });"
            "location.hash = fragment",
            fragment,
        )
        self.settle()

    def press(self, *keys: str, shift: bool = False) -> None:
        """Type into whatever has the focus."""
        actions = webdriver.ActionChains(self.browser, duration=0)
        if shift:
            actions.key_down(Keys.SHIFT)
        actions.send_keys(*keys)
        if shift:
            actions.key_up(Keys.SHIFT)
        actions.perform()
        self.settle()

    def set(self, selector: str, value) -> None:
        """Change a control as its user would."""
        self.js(
            "const node = document.querySelector(arguments[0]); node.value = arguments[1];"
            "for (const type of ['input', 'change']) node.dispatchEvent(new Event(type, {bubbles: true}))",
            selector,
            value,
        )
        self.settle()

    def select(self, selector: str, label: str) -> None:
        """Choose the option of this label."""
        index = self.texts(f"{selector} option").index(label)
        self.set(selector, self.js("return document.querySelector(arguments[0])[arguments[1]].value", selector, index))

    def boards(self) -> list[str]:
        """Titles of the boards that are shown."""
        return self.texts("#boards h3")

    def cells(
        self, board: int, columns: int, words: Iterable[str] = "123456789", canvases: str = "#boards canvas"
    ) -> list[dict]:
        """What is painted in every cell of a board, by its pixels alone.

        `text`: the word whose own picture resembles it most, or ""; `ground`, `ink`: the colours at the cell's corner
        and of what stands out most from it; `mark`: the colour where a line stands below what is wrong.
        """
        return self.js(READ_CELLS, board, columns, list(words), canvases)

    def pixels(self, board: int, columns: int, at: tuple[float, float] = (0.5, 0.5)) -> list[list[str]]:
        """`#rrggbb` of a painted board, one point of each cell: this share of it from the left and the top."""
        return self.js(
            """
            const [board, columns, [x, y]] = arguments, canvas = document.querySelectorAll("#boards canvas")[board];
            const { width, height } = canvas, unit = width / columns;
            const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            const { data } = copy.getImageData(0, 0, width, height);
            const hex = part => part.toString(16).padStart(2, "0");
            return Array.from({ length: height / unit }, (_, row) => Array.from({ length: columns }, (_, column) => {
              const start = 4 * (Math.floor((row + y) * unit) * width + Math.floor((column + x) * unit));
              return "#" + Array.from(data.slice(start, start + 3), hex).join("");
            }));""",
            board,
            columns,
            at,
        )

    def chosen(self, selector: str) -> str | None:
        """What a chooser names as shown."""
        return self.js("return document.querySelector(arguments[0]).selectedOptions[0]?.text", selector)

    def point(self, board: int, row: int, column: int, columns: int) -> None:
        """Move the pointer onto a cell of a board that has this many columns."""
        script = "return document.querySelectorAll('#boards canvas')[arguments[0]].getBoundingClientRect()"
        box = self.js(script, board)
        size = box["width"] / columns
        x, y = box["x"] + (column + 0.5) * size, box["y"] + (row + 0.5) * size
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def hold(self, path: str, *, comparing: bool = False) -> None:
        """Let what is read from files with this in their path wait for `let_read`; or, of it, what comparing reads."""
        self.js(HOLD_READS, path, "stream" if comparing else "arrayBuffer")

    def let_read(self) -> None:
        """Let what was held be read, and wait until all of it was."""
        self.js("letRead()")
        self.wait(lambda: self.js("return reading === 0"), "the reading does not end")

    def fragment(self) -> dict[str, str]:
        entries = self.js("return location.hash.slice(1)").split("&")
        return dict(entry.split("=") for entry in entries if entry)

    def screenshot(self, name: str) -> None:
        self.browser.execute_async_script("const [done] = arguments; requestAnimationFrame(() => setTimeout(done))")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def memory_peak(self) -> int:
        """Bytes: the most that any page process of this browser has held, shared libraries included; Linux only."""
        mine, peaks = {self.browser.service.process.pid}, []
        for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):  # parents come first
            try:
                status, command = (path / "status").read_text(), (path / "cmdline").read_text()
            except OSError:  # it has ended
                continue
            if int(re.search(r"PPid:\s+(\d+)", status)[1]) not in mine:
                continue
            mine.add(int(path.name))
            if "--type=renderer" in command and (peak := re.search(r"VmHWM:\s+(\d+) kB", status)):
                peaks.append(int(peak[1]) * 1024)
        return max(peaks)

    def console(self) -> list[str]:
        """Errors and warnings of the console since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]
