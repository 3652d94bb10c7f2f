"""The interval, what the page makes of hostile texts, half-written files, and curves of an SFT run.

Run: python -m pytest -q tests/test_report.py. The intervals are published or worked out by hand.
"""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import data
import report
import results

ROOT = Path(__file__).resolve().parents[1]
# texts that try to get out of the page's data
NASTY = [
    "</script><b>bold</b><script>alert(1)</script>",
    "<think>never closed <answer> 3 </answer> & \"double\" 'single' `${1}`",
    "<!-- <script> \\u003c \\ __DATA__ é 数 🟦 \u2028 \ud800",
]
PIXEL = "data:image/jpeg;base64,/9j/"


def group(step, images=(), texts=NASTY):
    completions = []
    for i, text in enumerate(texts):
        right = i % 2
        completion = {"text": text, "reward": right, "parts": {"accuracy": right}, "advantage": 0.5}
        completions.append(completion | {"tokens": 9, "finished": i > 0})
    return {
        "step": step,
        "id": f"id/{step}",
        "problem": NASTY[0],
        "solution": NASTY[1],
        "images": list(images),
        "completions": completions,
    }


def metrics(step):
    return {
        "step": step,
        "reward_accuracy": step / 60,
        "reward_std": 0.3,
        "kl": 0.0,
        "length": 20.0,
        "finished": 1.0,
        "grad_norm": 1.0,
        "seconds_rollout": 1.0,
        "seconds_update": 0.5,
    }


def write(folder, name, records, tail=""):
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records) + tail)


def page_data(folder):
    """What a browser would find in the data element: it ends at the first '</script', whatever that is."""
    page = (folder / "rollouts.html").read_text()
    return page, json.loads(page.split('id="data">', 1)[1].split("</script", 1)[0])


def test_wilson():
    # 8/10 and 0/10: Wilson's formula by hand, z = 1.96. 81/263 and 15/148: Newcombe 1998, table I, method 3.
    for correct, n, low, high in ((8, 10, 0.490, 0.943), (0, 10, 0, 0.278), (10, 10, 0.722, 1)):
        assert report.wilson(correct, n) == pytest.approx((low, high), abs=5e-4)
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert report.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert report.wilson(0, 0) == (0.0, 1.0)
    assert report.wilson(0, 7)[0] == 0.0 and report.wilson(7, 7)[1] == pytest.approx(1.0)


def test_hostile_texts_stay_text(tmp_path):
    write(tmp_path, "metrics.jsonl", [metrics(1), metrics(2)])
    write(tmp_path, "rollouts.jsonl", [group(1, [PIXEL]), group(2)])
    report.main(tmp_path)
    page, data = page_data(tmp_path)
    assert [c["text"] for c in data["groups"][0]["completions"]] == NASTY
    assert data["groups"][1]["problem"] == NASTY[0] and data["total"] == 2
    assert "<b>" not in page and page.count("</script>") == 2  # the data element's end and the program's
    for forbidden in ("http://", "https://", "innerHTML"):
        assert forbidden not in page


def test_half_written_last_lines_are_skipped(tmp_path, capsys):
    evaluation = {"step": 0, "eval_accuracy": 0.1, "eval_format": 1.0, "eval_n": 10}
    write(tmp_path, "metrics.jsonl", [evaluation, metrics(1)], '{"step": 2, "reward_acc')
    write(tmp_path, "rollouts.jsonl", [group(1)], '{"step": 2, "id": "half", "completions": [{"te')
    write(tmp_path, "run.json", [], '{"commit": "abc')
    assert [r["step"] for r in report.read_metrics(tmp_path)] == [0, 1]
    report.main(tmp_path)
    _, data = page_data(tmp_path)
    assert [g["step"] for g in data["groups"]] == [1] and data["total"] == 1
    out = capsys.readouterr().out
    assert out == f"{tmp_path / 'curves.png'} {tmp_path / 'rollouts.html'}\n"
    assert not list(tmp_path.glob(".*.tmp"))  # the temporary names are gone


def test_nan_does_not_break_the_page(tmp_path):
    rows = [metrics(1) | {"grad_norm": float("nan")}, metrics(2) | {"kl": float("inf")}]
    write(tmp_path, "metrics.jsonl", rows)
    bad = group(1)
    bad["completions"][0]["advantage"] = float("nan")
    write(tmp_path, "rollouts.jsonl", [bad])
    report.main(tmp_path)
    page, data = page_data(tmp_path)
    assert data["groups"][0]["completions"][0]["advantage"] is None


def test_long_runs_are_sampled_evenly_and_fit(tmp_path):
    # 300 steps x (2 with image, 8 without)
    groups = []
    for step in range(1, 301):
        for i in range(10):
            images = [PIXEL] if i in (3, 7) else []
            groups.append(group(step, images, ["short"] * 2))
    write(tmp_path, "rollouts.jsonl", groups)
    picked, total = report.pick_groups(tmp_path / "rollouts.jsonl")
    steps = sorted({g["step"] for g in picked})
    assert total == 3000 and len(steps) == 60 and (steps[0], steps[-1]) == (1, 300)
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) <= 6
    with_images = [g for g in picked if g["images"]]
    assert len(with_images) == 120  # all thumbnails of a chosen step, before any other group
    # texts so long that the page must be thinned
    write(tmp_path, "rollouts.jsonl", [group(step, [PIXEL], ["<a>" * 20_000] * 2) for step in range(1, 101)])
    picked, _ = report.pick_groups(tmp_path / "rollouts.jsonl")
    assert len(picked) > 5 and len(json.dumps(picked).replace("<", "\\u003c")) < report.MAX_BYTES


def test_missing_folder_is_one_sentence(tmp_path):
    for argument in ([str(tmp_path / "nowhere")], []):
        command = [sys.executable, ROOT / "report.py", *argument]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 1 and "Traceback" not in run.stderr and run.stderr.count("\n") == 1
        assert "metrics.jsonl" in run.stderr and "out_dir" in run.stderr


def test_sft_metrics_give_curves_only(tmp_path):
    rows = [{"step": step, "loss": 6 / step, "lr": 1e-3, "grad_norm": 1.0} for step in range(1, 60)]
    write(tmp_path, "metrics.jsonl", rows)
    titles = [title for title, *_ in report.panels(report.read_metrics(tmp_path))]
    assert titles == ["Loss", "Learning rate", "Gradient norm"]
    report.main(tmp_path)
    assert not (tmp_path / "rollouts.html").exists()
    image = Image.open(tmp_path / "curves.png").convert("RGB")
    pixels = {color: count for count, color in image.getcolors(1 << 24)}
    blue = pixels[0x00, 0x72, 0xB2]
    assert image.width == 1248 and blue > 500  # drawn lines, not just axes


def test_panels_leave_out_what_is_off_or_missing(tmp_path):
    titles = [title for title, *_ in report.panels([metrics(1), metrics(2)])]
    assert "KL to the reference" not in titles and "Entropy" not in titles and "Loss" not in titles  # kl is 0
    assert {"Rewards", "Completion length", "Seconds per step", "Gradient norm"} <= set(titles)


# -----------------------------------------------------------------------------
# whole pictures
# -----------------------------------------------------------------------------


def documents(folder, n):
    """A data set of n pictures in files, each a page of 1,700 x 2,200 pixels with stripes."""
    page = Image.linear_gradient("L").resize((1700, 2200))
    page = page.point(lambda grey: 255 * (grey % 16 > 8))
    lines = []
    for i in range(n):
        page.save(folder / f"page {i}.png")
        lines.append(json.dumps({"image": f"page {i}.png", "problem": f"q{i}", "solution": "3"}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return data.load_rows(str(folder / "rows.jsonl"))


def evaluation(rows, verdicts=(1.0, 0.0), **more):
    entries = []
    for i in range(len(rows)):
        output = {"text": NASTY[0], "answer": "3", "accuracy": verdicts[i % 2], "lenient": verdicts[i % 2]}
        entry = {"index": i, "id": f"doc/{i}", "problem": NASTY[1], "solution": "3", "task": "anls"}
        entries.append(entry | {"outputs": [output | more]})
    return entries


def eval_data(path):
    return json.loads(path.read_text().split('id="data">', 1)[1].split("</script", 1)[0])


def size_of(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1]))).size


def test_pictures_are_whole_while_there_is_room_and_small_with_a_link_after_that(tmp_path, monkeypatch):
    rows = documents(tmp_path, 4)
    entries = evaluation(rows)
    records = {"": {"docs": results.summary(entries) | {"results": entries}}}
    page = tmp_path / "eval.html"
    report.eval_page(page, "n", "f", records, {"docs": rows}, 10)
    found = eval_data(page)["rows"]
    assert [size_of(row["images"][0]) for row in found] == [(1236, 1600)] * 4  # 1,600 high, in proportion
    assert found[0]["notes"] == ["1700 x 2200 pixels"] and "files" not in found[0]
    whole = len(found[0]["images"][0])

    monkeypatch.setattr(report, "PICTURE_BYTES", 2 * whole + 10)
    report.eval_page(page, "n", "f", records, {"docs": rows}, 10)
    found = eval_data(page)["rows"]
    assert [max(size_of(row["images"][0])) for row in found] == [1600, 1600, 240, 240]
    assert found[2]["files"] == [(tmp_path / "page 2.png").as_uri()]  # a blank is %20 there
    assert page.stat().st_size < 3 * whole + 60_000


def test_pictures_that_are_gone_cost_no_page(tmp_path):
    rows = documents(tmp_path, 2)
    (tmp_path / "page 0.png").unlink()
    entries = evaluation(rows)
    records = {"": {"docs": results.summary(entries) | {"results": entries}}}
    report.eval_page(tmp_path / "eval.html", "n", "f", records, {"docs": rows}, 10)
    assert [len(row["images"]) for row in eval_data(tmp_path / "eval.html")["rows"]] == [0, 1]


# what a browser says after a click on a picture and keys: is the viewer open, how much is zoomed, errors
WATCH = "<script>const errors = []; onerror = message => { errors.push(message); };</script>"
PRESS = """<script>
const says = [];
const press = key => $("viewer").dispatchEvent(new KeyboardEvent("keydown", {key}));
document.querySelector(".picture").click();
setTimeout(() => {
  says.push($("viewer").open, $("about").textContent);
  press("1");
  says.push($("zoom").textContent);
  press("-");
  says.push($("zoom").textContent);
  $("shut").click();
  says.push($("viewer").open, errors.length);
  document.body.dataset.says = JSON.stringify(says);
}, 1000);
</script>"""


def in_browser(page):
    """(the page's text after all scripts, what PRESS has seen) in a headless browser."""
    text = page.read_text()
    watched = page.with_name("watched.html")
    watched.write_text(text.replace("<h1", WATCH + "<h1", 1).replace("</html>", PRESS + "</html>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += ["--dump-dom", watched.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    says = re.search(r'data-says="([^"]*)"', found)[1]
    return found, json.loads(html.unescape(says))


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_the_viewer_in_a_browser(tmp_path):
    rows = documents(tmp_path, 2)
    entries = evaluation(rows, verdicts=(0.93, 0.0), **{"my_metrics:f1": 0.25})
    found = results.summary(entries, of=5349, metric="my_metrics:f1")
    report.eval_page(
        tmp_path / "eval.html", "n", "f", {"": {"docs": found | {"results": entries}}}, {"docs": rows}, 9
    )
    dom, says = in_browser(tmp_path / "eval.html")
    about = f"{NASTY[1]}\nreference 3  ·  1700 x 2200 pixels"
    assert says == [True, about, "100 %", "80 %", False, 0]
    # the incomplete set, a verdict between right and wrong, and the user's own metric
    cells = ["2 of 5349"]
    cells += ['<td class="yes" data-name="tag">0.93</td>', '<td class="" data-name="f1">0.25</td>']
    for cell in cells:
        assert cell in dom, cell

    write(tmp_path, "metrics.jsonl", [metrics(1), metrics(2)])
    picture = data.thumbnail(rows[0]["images"][0])
    # chromium writes out no DOM with half a surrogate pair
    write(tmp_path, "rollouts.jsonl", [group(1, [picture], NASTY[:2])])
    report.main(tmp_path)
    dom, says = in_browser(tmp_path / "rollouts.html")
    assert says == [True, f"{NASTY[0]}\nanswer {NASTY[1]}", "100 %", "80 %", False, 0]
    assert "<b>bold</b>" not in dom
