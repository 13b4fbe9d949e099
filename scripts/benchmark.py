"""Measure against others, as ratios within one run, since machines are shared and noisy.

python scripts/benchmark.py models      # pretraining, fine-tuning, inference, against transformers
python scripts/benchmark.py models --device cuda --sizes b l --dtypes bf16 --peers compiled
python scripts/benchmark.py imports     # against `from transformers import PreTrainedModel`
python scripts/benchmark.py decode      # JPEG to training crop, against Pillow as MAE uses it
python scripts/benchmark.py processor   # image to pixel values, against transformers' ViT processor
python scripts/benchmark.py run --recipe mae-cpu   # a whole run against its model and data alone

`models` needs torch, transformers, numpy and pillow alone; on a machine without this package
installed, put its src/ on PYTHONPATH. Stages of the pipeline on your own images:
`hf-vitmae benchmark data SOURCE`.
"""

import argparse
import atexit
import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

OURS, THEIRS = "import hf_vitmae", "from transformers import PreTrainedModel"
SHAPES = ((375, 500), (1200, 1600))  # height, width
CROP = (224, 224)
NUM_CROPS = 8
Times = dict[str, list[float]]


def measure_imports(rounds: int = 7) -> None:
    """Both imports in fresh processes: medians and their ratio."""

    def start(statement: str) -> None:
        subprocess.run([sys.executable, "-c", statement], check=True)

    sides = {name: (lambda name=name: start(name)) for name in (OURS, THEIRS)}
    seconds = take_turns(sides, rounds)
    ours, theirs = statistics.median(seconds[OURS]), statistics.median(seconds[THEIRS])
    print(f"`{OURS}` {ours:.2f} s, `{THEIRS}` {theirs:.2f} s, ratio {ours / theirs:.2f}")


def measure_decode(rounds: int = 31, photos: Path | None = None) -> None:
    """Decode, random crop, bicubic resize and flip to uint8, on one core.

    Args:
        rounds: times that each side is measured, in turn.
        photos: folder of photographs to make JPEGs of; scikit-learn's two samples if left out.
    """
    from hf_vitmae.data.augmentation.transforms import TrainTransform

    torch.set_num_threads(1)
    transform = TrainTransform(CROP)
    for shape in SHAPES:
        # Several crops of each in a turn, since what is paid for a crop depends on its size.
        files = jpegs(find_photos(photos), shape) * NUM_CROPS

        def ours(files: list[bytes] = files) -> None:
            for seed, encoded in enumerate(files):
                transform.read(encoded, np.random.default_rng(seed), "")

        def pillow(files: list[bytes] = files) -> None:
            for seed, encoded in enumerate(files):
                read_by_pillow(encoded, transform, np.random.default_rng(seed))

        seconds = take_turns_apart({"ours": ours, "Pillow": pillow}, rounds)
        report(f"{shape[0]}x{shape[1]} JPEG to {CROP[0]}x{CROP[1]} crop", seconds, len(files))


def read_by_pillow(encoded: bytes, transform: Any, generator: np.random.Generator) -> torch.Tensor:
    """What MAE's own pipeline does, with the box that `transform` draws: -> uint8 (3, H, W)."""
    with Image.open(io.BytesIO(encoded)) as opened:
        picture = opened.convert("RGB")
    top, left, height, width = transform.crop_box(picture.height, picture.width, generator)
    picture = picture.crop((left, top, left + width, top + height))
    picture = picture.resize((CROP[1], CROP[0]), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def measure_processor(rounds: int = 31, photos: Path | None = None) -> None:
    """JPEG files opened by Pillow, pictures in memory and arrays to pixel values, on one core.

    Args:
        rounds: times that each side is measured, in turn.
        photos: folder of photographs to make JPEGs of; scikit-learn's two samples if left out.
    """
    from transformers import ViTImageProcessorPil

    from hf_vitmae import VitMaeImageProcessor

    torch.set_num_threads(1)
    ours = VitMaeImageProcessor(do_center_crop=False, resample=Image.Resampling.BILINEAR)
    theirs = ViTImageProcessorPil()
    for shape in SHAPES:
        files = jpegs(find_photos(photos), shape)
        for kind, images in kinds_of_images(files).items():
            sides = {"ours": process(ours, images), "transformers": process(theirs, images)}
            seconds = take_turns(sides, rounds)
            one, other = (torch.stack(side()) for side in sides.values())
            levels = (one - other).abs().max().item() * 0.5  # -1..1 to 0..1
            report(f"{shape[0]}x{shape[1]} {kind}", seconds, len(files))
            print(f"  largest difference {levels * 255:.2f}/255")


def kinds_of_images(files: list[bytes]) -> dict[str, list[Callable[[], Any]]]:
    """How to make each image, as a person may hand it over: opened by Pillow, decoded, an array."""
    folder = Path(tempfile.mkdtemp(prefix="hf_vitmae_benchmark_"))
    atexit.register(shutil.rmtree, folder)
    kinds: dict[str, list[Callable[[], Any]]] = defaultdict(list)
    for number, encoded in enumerate(files):
        path = folder / f"{number}.jpg"
        path.write_bytes(encoded)
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
        array = np.array(picture)
        kinds["JPEG file"].append(lambda path=path: Image.open(path))
        kinds["JPEG in memory"].append(lambda encoded=encoded: Image.open(io.BytesIO(encoded)))
        kinds["picture"].append(lambda picture=picture: picture)
        kinds["array"].append(lambda array=array: array)
    return kinds


def process(processor: Any, images: list[Callable[[], Any]]) -> Callable[[], list[torch.Tensor]]:
    """A run of a processor over images that are made anew for it, one call for each."""

    def run() -> list[torch.Tensor]:
        return [processor(image(), return_tensors="pt")["pixel_values"][0] for image in images]

    return run


def find_photos(folder: Path | None) -> list[Path]:
    """The photographs of a folder, or the sample images that scikit-learn brings.

    Raises:
        ValueError: if there are none.
    """
    if folder is None:
        spec = importlib.util.find_spec("sklearn")
        if spec is None or spec.origin is None:
            raise ValueError("There are no photographs; install scikit-learn or give --photos DIR.")
        folder = Path(spec.origin).parent / "datasets" / "images"
    photos = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".jpeg"))
    if not photos:
        raise ValueError(f"{folder} holds no .jpg files; give another folder.")
    return photos


def jpegs(photos: list[Path], shape: tuple[int, int]) -> list[bytes]:
    """The photographs as JPEGs of (height, width), of quality 90 and 4:2:0 as cameras write."""
    files, (height, width) = [], shape
    for path in photos:
        with Image.open(path) as opened:
            picture = opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def take_turns_apart(sides: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """As `take_turns`, each side in a process of its own, as it would run in training.

    In one process, what a side frees decides how fast the other gets memory: Pillow's megabytes are
    a third faster or slower by that.
    """
    processes = multiprocessing.get_context("fork")

    def work(run: Callable[[], Any], connection: Connection) -> None:
        while connection.recv():
            start = time.perf_counter()
            run()
            connection.send(time.perf_counter() - start)

    workers: dict[str, tuple[BaseProcess, Connection]] = {}
    for name, run in sides.items():
        ours, theirs = processes.Pipe()
        worker = processes.Process(target=work, args=(run, theirs), daemon=True)
        worker.start()
        workers[name] = worker, ours
    seconds: Times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, (_, connection) in workers.items():
            connection.send(True)
            taken = connection.recv()
            if number:
                seconds[name].append(taken)
    for worker, connection in workers.values():
        connection.send(False)
        worker.join()
    return seconds


def take_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each round of each side, A B A B, after a warm-up."""
    seconds: Times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: Times, num_images: int) -> None:
    """Milliseconds per image of both sides, the second over the first."""
    parts, medians = [], []
    for name, times in seconds.items():
        low, median, high = (
            1000 * value / num_images
            for value in (min(times), statistics.median(times), max(times))
        )
        medians.append(median)
        parts.append(f"{name} {median:.2f} ms ({low:.2f}..{high:.2f})")
    print(f"{title}: {', '.join(parts)}, ratio {medians[1] / medians[0]:.2f}")


def measure_run(
    recipe: str = "mae-cpu",
    rounds: int = 7,
    steps: int = 20,
    batch_size: int | None = None,
    image_size: int | None = None,
    workers: int = 1,
    threads: int | None = None,
    photos: Path | None = None,
) -> None:
    """Pretraining on a folder of JPEGs against the smaller of what its model and data do alone."""
    from hf_vitmae.recipes import PRETRAIN

    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="hf_vitmae_benchmark_") as place:
        folder = Path(place) / "photos"
        folder.mkdir()
        for number, encoded in enumerate(jpegs(find_photos(photos), SHAPES[0]) * 32):
            (folder / f"{number}.jpg").write_bytes(encoded)
        plan = PRETRAIN[recipe]()
        plan = dataclasses.replace(
            plan,
            data=dataclasses.replace(plan.data, source=str(folder), num_workers=workers),
            model=dataclasses.replace(plan.model, image_size=image_size or plan.model.image_size),
            output_dir=Path(place) / "run",
            steps=2 * steps,
            batch_size=batch_size or plan.batch_size,
            log_every=steps,
            health_every=0,
            tracker=("none",),
        )
        rates = WholeRun(plan).measure(rounds)
    for name, values in rates.items():
        low, median, high = min(values), statistics.median(values), max(values)
        print(f"  {name:12} {median:8.1f} images/s ({low:.1f} to {high:.1f})")
    least = [min(pair) for pair in zip(rates["model alone"], rates["data alone"], strict=True)]
    shares = [run / limit for run, limit in zip(rates["whole run"], least, strict=True)]
    print(
        f"{recipe}, {torch.get_num_threads()} threads, {workers} workers: "
        f"{statistics.median(shares):.1%} of the smaller ({min(shares):.1%} to {max(shares):.1%})"
    )


@dataclasses.dataclass
class WholeRun:
    """Images per second of a pretraining run, in the second half of its steps.

    Args:
        plan: a recipe whose log has a line in the middle and one at the end.
    """

    plan: Any

    def measure(self, rounds: int) -> Times:
        """The whole, its model alone and its data alone, in turn."""
        rates: Times = defaultdict(list)
        for _ in range(rounds):
            rates["whole run"].append(self.train(self.load))
            rates["model alone"].append(self.train(self.repeat))
            rates["data alone"].append(self.read())
        return rates

    def train(self, batches: Callable[..., Any]) -> float:
        """As metrics.jsonl has it."""
        from hf_vitmae.tasks import fit, pretrain

        self.loader, fit.train_batches = fit.train_batches, batches
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = pretrain.run(self.plan)
        finally:
            fit.train_batches = self.loader
        shutil.rmtree(self.plan.output_dir)
        return result["images_per_second"]

    def load(self, *arguments: Any, **options: Any) -> Any:
        """The run's own batches."""
        self.asked = functools.partial(self.loader, *arguments, **options)
        return self.asked()

    def repeat(self, *arguments: Any, **options: Any) -> Any:
        """The first batch, again and again."""
        with contextlib.closing(self.loader(*arguments, **options)) as batches:
            return itertools.repeat(next(batches))

    def read(self) -> float:
        """The run's batches without a model."""
        with contextlib.closing(self.asked()) as batches:
            for _ in range(self.plan.steps // 2):
                next(batches)
            start = time.perf_counter()
            for _ in range(self.plan.steps // 2):
                next(batches)
            seconds = time.perf_counter() - start
        return self.plan.steps // 2 * self.plan.batch_size / seconds


def measure_models(**options: Any) -> None:
    """Steps of our models against transformers', as a table and in `output` as JSON too."""
    from hf_vitmae.benchmarks.models import ModelBenchmark, run

    run(ModelBenchmark(**options))


def parse() -> argparse.Namespace:
    """The command line: a function and its options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("imports", help="import time")
    add.set_defaults(run=measure_imports)
    add.add_argument("--rounds", type=int, default=7)
    for name, function in (("decode", measure_decode), ("processor", measure_processor)):
        add = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        add.set_defaults(run=function)
        add.add_argument("--rounds", type=int, default=31)
        add.add_argument("--photos", type=Path, default=None)
    add = commands.add_parser("run", help="a whole run against its model and its data alone")
    add.set_defaults(run=measure_run)
    add.add_argument("--recipe", default="mae-cpu")
    add.add_argument("--photos", type=Path, default=None)
    for name, default in (("rounds", 7), ("steps", 20), ("workers", 1)):
        add.add_argument(f"--{name}", type=int, default=default)
    for name in ("batch-size", "image-size", "threads"):
        add.add_argument(f"--{name}", type=int, default=None)
    add = commands.add_parser("models", help="steps of models")
    add.set_defaults(run=measure_models)
    for name, default in (
        ("tasks", ("mae", "finetune", "inference")),
        ("sizes", ("ti", "b")),
        ("dtypes", ("fp32", "bf16")),
        ("peers", ("recomputed",)),
    ):
        add.add_argument(f"--{name}", nargs="*", default=default)
    add.add_argument("--device", default="cpu")
    for name, default in (
        ("image-size", None),
        ("batch-size", None),
        ("rounds", 7),
        ("threads", None),
    ):
        add.add_argument(f"--{name}", type=int, default=default)
    add.add_argument("--output", type=Path, default=None, help="folder for JSON, table, profiles")
    add.add_argument("--profile", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for; a mistake in it is one line."""
    options = vars(parse())
    del options["command"]
    function = options.pop("run")
    try:
        function(**options)
    except ValueError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
