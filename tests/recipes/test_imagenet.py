"""The second recipe on the same API, small enough for a CPU."""

import json

import pytest

from trainkit.testing import requires_module, run_ranks

pytest.importorskip("torch")
pytestmark = requires_module("torchvision")

SMALL = [
    "--model=resnet18",
    "--image-size=32",
    "--batch-size=4",
    "--synthetic",
    "--synthetic-images=100",
    "--workers=0",
]


def done(result):
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"event"')]
    return json.loads(lines[-1])


def run(n, *flags, **options):
    argv = [*SMALL, *flags]
    return run_ranks("-m trainkit.recipes.imagenet", n, argv=argv, timeout=280, **options)


def test_two_ranks_train_test_and_resume(tmp_path):
    folder = f"--checkpoint-dir={tmp_path}"
    first = done(run(2, "--max-steps=2", folder)[0])
    assert (first["step"], first["steps_run"]) == (2, 2)
    assert 0 <= first["test_accuracy"] <= 1
    assert first["images_per_second"] > 0
    second = done(run(2, "--max-steps=3", folder)[0])
    assert (second["step"], second["steps_run"]) == (3, 1)


def test_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shade = (40 * number, 90, 200 if name == "cat" else 10)
                image.new("RGB", (48, 40), shade).save(folder / f"{number}.png")
    flags = ["--model=resnet18", "--image-size=32", "--batch-size=4", "--workers=1"]
    (result,) = run_ranks(
        "-m trainkit.recipes.imagenet",
        1,
        argv=[*flags, "--max-steps=2", f"--data-dir={tmp_path}"],
        timeout=280,
    )
    # 6 test images, so the accuracy is a sixth of a whole number
    assert (done(result)["test_accuracy"] * 6) % 1 == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--model=resnet18"], 2, "--data-dir"),
        (["--synthetic", "--model=nope"], 2, "--model nope"),
        (["--data-dir=nowhere"], 66, "nowhere"),
    ],
)
def test_what_is_missing_is_said(flags, code, words):
    (result,) = run_ranks("-m trainkit.recipes.imagenet", 1, argv=flags, check=False, timeout=280)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
