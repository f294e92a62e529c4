"""The figures in running text are those of benchmarks/results/, and each is in a table or in a claim below."""

import functools
import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = re.compile(r"(?<![\w.,-])[+-]?\d+\.\d+(?![\w.]*\d)")
# Settings, versions, standards and identifiers: no measurement.
NOT_MEASURED = {
    "README.md": {"1.0", "3.11", "2205.13943"},
    "docs/quickstart.md": {"3.11", "0.7", "1.0"},
    "docs/how_it_works.md": {"0.6"},
    "docs/index.md": {"2205.13943"},
    "docs/results.md": {"1.0", "0.7", "0.5", "1.5", "0.6", "0.75", "2205.13943"},
    "docs/pretraining.md": {"0.1", "0.2", "0.75", "1.5", "0.001", "0.02"},  # the last by the formula of a share
    "docs/fine_tuning.md": {"0.01", "0.05", "0.5", "0.65", "0.75"},
    "docs/embeddings.md": {"0.999"},
    "docs/data.md": {"0.3", "0.5", "0.8", "99.5", "0.05"},
    "docs/segmentation_and_detection.md": {"1807.10221", "0.05", "0.5"},
    "docs/analysis.md": {"0.1"},
    "docs/performance.md": {"0.8", "5.7"},
}


@functools.cache
def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def page(name):
    return (ROOT / name).read_text(encoding="utf-8").replace("\u2013", "-")


def tables_and_text(name):
    """Lines of tables, and those of neither tables nor code."""
    rows, text, code = [], [], False
    for line in page(name).splitlines():
        if line.strip().startswith("```"):
            code = not code
        elif line.startswith("|"):
            rows.append(line)
        elif not code:
            text.append(line)
    return rows, text


def dense(runs, start, metric="mean_iou"):
    return [row[metric] for row in read("dense")[runs]["results"][start]]


def interaction(encoder, order):
    """The difference in J of A2MIM and from scratch, and its interval."""
    found = read(f"interactions/{encoder}/interactions")
    at = found["models"][f"{encoder} A2MIM"]["settings"]["ratios"].index(order)
    difference = found["differences"][f"{encoder} A2MIM - {encoder} from scratch"]
    ends = [abs(end) for end in difference["interval"][at]]
    return [abs(difference["strength"][at]), min(ends), max(ends)]


def lowest(model):
    """I(m) where nothing but the pair is shown."""
    return read("interactions/ViT/interactions")["models"][model]["mean"][0]


def above(run, step):
    """dB above the mean colour."""
    evaluations = {row["step"]: row for row in read("first_run")["runs"][run]["evaluations"]}
    return evaluations[step]["masked_psnr"] - evaluations[step]["mean_fill_psnr"]


def steps():
    """Of all encoders: the variant that the page is about."""
    return [found["variants"]["A2MIM, whole reconstruction"] for found in read("step").values()]


def percents(encoder):
    return [100 * read("monitor")[encoder]["cpu_seconds"]["share"][name] for name in ("median", "low", "high")]


def ratios(encoder):
    return [read("monitor")[encoder]["cpu_seconds"]["ratio"][name] for name in ("median", "low", "high")]


def faster(encoder, part):
    return read("interactions")["results"][f"transfer/{encoder}-A2MIM-all-tuned/seed-0"][part]["times_faster"]


def fewer_passes(encoder):
    found = read("interactions")["results"][f"transfer/{encoder}-A2MIM-all-tuned/seed-0"]["variance"]
    return sorted(found["samplings"]["shared"]["fewer_passes_for_the_same_interval"])


def on_gpu(part):
    return read("gpu")["parts"][part]["results"]


def steps_on_gpu():
    """A2MIM over the encoder with the decoder, the least and the most of all encoders."""
    times = [found["A2MIM"][DECODED]["time"] for found in on_gpu("steps").values()]
    return [min(times), max(times)]


def fourier_shares(kind):
    """In percent, of the encoders whose steps were measured as well."""
    shares = [100 * found[kind]["share"] for name, found in on_gpu("fourier").items() if name in on_gpu("steps")]
    return [min(shares), max(shares)]


def faster_on_gpu(sampling):
    found = on_gpu("interactions")
    return [found[f"{name}, {sampling}"]["times_faster"][0] for name in ("vit_base_patch16_224", "resnet50")]


def of_transformers():
    found = read("step")["vit_base_patch16_224"]["variants"]["ViTForMaskedImageModeling"]["transformers' ViTModel"]
    return [found[name] for name in ("time", "low", "high")]


def multiscale(variant):
    found = read("step_multiscale")["resnet50"]["variants"][variant]["encoder"]
    return [found[name] for name in ("time", "low", "high")]


def of_target(variant):
    found = read("step_target")["resnet50"]["variants"][variant]["encoder"]
    return [found[name] for name in ("time", "low", "high")]


def of_all(to, name, choose):
    return choose(variant[to][name] for variant in steps())


SLOWER = "semantic-segmentation, 0.001"
ENDS = (("low", min), ("high", max))
VIT = "fashion_mnist, vit_tiny_patch16_224, 16"
BARE, DECODED = "encoder", "encoder + decoder"
CLAIMS = {
    "docs/results.md": [
        ("({:.3f} to {:.3f}) is above every", lambda: sorted(dense(SLOWER, "pre-trained"))[::4]),
        (
            "at either rate (at most {:.3f})",
            lambda: [max(dense("semantic-segmentation", "random") + dense(SLOWER, "random"))],
        ),
        ("{:.1f} dB above after 700 steps, {:.1f} after 800", lambda: [above(VIT, 700), above(VIT, 800)]),
        ("{:.1f} after 1,000", lambda: [above(VIT, 1000)]),
        ("J rises by {:.2f} ({:.2f} to {:.2f}) at 30%", lambda: interaction("CNN", 0.3)),
        ("{:.2f} ({:.2f} to {:.2f}) at 50%", lambda: interaction("CNN", 0.5)),
        ("and {:.2f} ({:.2f} to {:.2f}) at 60%", lambda: interaction("CNN", 0.6)),
        ("falls by {:.2f} ({:.2f} to {:.2f}) where none", lambda: interaction("CNN", 0.0)),
        ("at 60% by {:.2f}, {:.2f} to {:.2f})", lambda: interaction("ViT", 0.6)),
        (
            "four times as strong ({:.2f} against {:.2f})",
            lambda: [lowest("ViT A2MIM"), lowest("ViT from scratch")],
        ),
    ],
    "README.md": [
        ("takes {:.2f} to {:.2f} times the step", lambda: [of_all(BARE, "time", f) for f in (min, max)]),
        ("and {:.2f} to {:.2f} times that", lambda: [of_all(DECODED, "time", f) for f in (min, max)]),
        (
            "percentiles span {:.2f} to {:.2f})",
            lambda: [choose(of_all(to, end, choose) for to in (BARE, DECODED)) for end, choose in ENDS],
        ),
        ("in bfloat16 a step takes {:.2f} to {:.2f} times", steps_on_gpu),
        ("memory is {:.3f} to {:.3f} times", lambda: [of_all(DECODED, "memory", f) for f in (min, max)]),
    ],
    "docs/performance.md": [
        ("over its own bare ViT-B: {:.2f} ({:.2f}-{:.2f})", of_transformers),
        ("saved {:.1f}% of a step", lambda: [100 * read("masked_cells")["saved share of a step"]["value"]]),
        ("takes {:.2f} ({:.2f}-{:.2f}) times the step", lambda: multiscale("A2MIM, multi-scale decoder")),
        ("linear decoder {:.2f} ({:.2f}-{:.2f}) times", lambda: multiscale("A2MIM")),
        ("normalised` takes {:.2f} ({:.2f}-{:.2f}) times", lambda: of_target("A2MIM, normalised target")),
        ("where pixels take {:.2f} ({:.2f}-{:.2f})", lambda: of_target("A2MIM")),
        ("{:.1f}% (resnet18 at 32 px; 10th to 90th percentile {:.1f}-{:.1f}%)", lambda: percents("resnet18")),
        ("{:.1f}% (vit_tiny_patch16_224 at 64 px; {:.1f}-{:.1f}%)", lambda: percents("vit_tiny_patch16_224")),
        ("without it, {:.2f} ({:.2f}-{:.2f}) and", lambda: ratios("resnet18")),
        ("{:.2f} ({:.2f}-{:.2f}), is too noisy", lambda: ratios("vit_tiny_patch16_224")),
        ("images is {:.2f} times that", lambda: [read("stream")["memory_ratio"]]),
        ("evaluated {:.1f} times faster on a CPU ({:.1f} to {:.1f})", lambda: faster("CNN", "shared")),
        ("for the ViT {:.1f} times", lambda: faster("ViT", "shared_alone_on_the_machine")[:1]),
        ("takes {:.1f} to {:.1f} times fewer forward passes", lambda: fewer_passes("CNN")[::2]),
        ("(ViT: {:.1f} to {:.1f};", lambda: fewer_passes("ViT")[::2]),
        ("windows` is {:.1f} times faster", lambda: faster("CNN", "windows")[:1]),
        ("Fourier term takes {:.1f} to {:.1f}% of such a step", lambda: fourier_shares("with")),
        ("and {:.1f} to {:.1f}% with the spectrum of each image", lambda: fourier_shares("each image")),
        ("bfloat16) it is {:.1f} and {:.1f} times faster", lambda: faster_on_gpu("shared")),
        ("with windows {:.1f} and {:.1f} times", lambda: faster_on_gpu("windows")),
        ("each sample is {:.1f} MB of float32", lambda: [13 * 224 * 224 * 4 / 1e6]),
    ],
    "docs/embeddings.md": [
        ("The process held {:.1f} GB", lambda: [read("embed")["results"]["command"]["peak_mb"] / 1000]),
    ],
    "docs/data.md": [
        ("took {:.1f} seconds on two cores", lambda: [read("prepare")["seconds"]]),
        ("and {:.1f} MB after", lambda: [read("prepare")["bytes_after"] / 1e6]),
        ("makes {:.1f} ([record]", lambda: [read("prepare")["images_per_second"]["ImageFolder, the files"]]),
    ],
}
PAGES = sorted({"README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))})


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_of_the_text_is_measured(name):
    """In a table of this page or of the results (which are compared with the JSON files), or in a claim."""
    rows, text = tables_and_text(name)
    known = set(FIGURE.findall("\n".join(rows + tables_and_text("docs/results.md")[0])))
    known |= {figure.lstrip("+") for figure in known} | NOT_MEASURED.get(name, set())
    joined, claimed = " ".join(" ".join(text).split()), []
    for claim, values in CLAIMS.get(name, ()):
        told = claim.format(*values())
        assert told in joined, told
        claimed.append(told)
    for told in claimed:
        joined = joined.replace(told, "")
    unknown = [figure for figure in FIGURE.findall(joined) if figure.lstrip("+") not in known]
    assert not unknown, f"figures of {name} that are neither in a table nor in a claim: {unknown}"
