"""The layout's promises: imports go one way, the Hub payload stands alone, files stay small.

Every rule is a function from source text to complaints, so that it is tried on bad snippets too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hf_vitmae"
MODELS = SOURCE / "models"

# A set may import from those before it; names in one set do not import each other.
PACKAGE_LAYERS: tuple[set[str], ...] = (
    {"models", "whole_or_absent"},
    {"convert", "data", "hub", "visualize"},
    {"app", "benchmarks"},
    {"training"},
    {"tasks"},
    {"recipes"},
    {"command_line"},
    {"cli"},
)
MODEL_LAYERS: tuple[set[str], ...] = (
    {
        "checks",
        "matmul_attention",
        "onednn_linear",
        "patches",
        "pictures",
        "masking",
        "modes",
        "outputs",
    },
    {"configuration_vitmae", "resizing", "mask_patterns"},
    {"layers", "stem", "corruption", "sliding", "segmentation_maps"},
    {"embeddings", "next_patch"},
    {"decoder", "heads", "losses"},
    {"adaptation", "foreign", "reconstruction"},
    {"loading"},
    {"modeling_vitmae"},
)
FACES = {"__init__", "__main__"}  # they name all of what lies below them
EXTRA_BANS = {("training", "data")}  # the loop takes any iterable of batches
PAYLOAD_LIBRARIES = {"torch", "transformers", "numpy", "PIL"} | set(sys.stdlib_module_names)
HEAVY_LIBRARIES = ("datasets", "accelerate", "evaluate", "matplotlib", "tyro")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LOOP_LINES = 400, 60, 100
MAX_MODELING_LINES = 700  # the Hub wants every model class in one file: each of them is short


def source_files(folder: Path = SOURCE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Full dotted names that a module in `package` imports, wherever the import is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{origin(node, package)}.{alias.name}" for alias in node.names)


def origin(node: ast.ImportFrom, package: str) -> str:
    """The full name of what stands between `from` and `import` in a module of `package`."""
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    parents = parts[: len(parts) + 1 - node.level]
    return ".".join([*parents, node.module] if node.module else parents)


def layer_of(name: str, layers: tuple[set[str], ...]) -> int | None:
    return next((index for index, layer in enumerate(layers) if name in layer), None)


def is_allowed(importer: str, imported: str, layers: tuple[set[str], ...]) -> bool:
    """Whether the part `importer` may import the part `imported`."""
    if importer == imported:
        return True
    above, below = layer_of(importer, layers), layer_of(imported, layers)
    if above is None or below is None or (importer, imported) in EXTRA_BANS:
        return False
    return below < above


def package_complaints(source: str, part: str, package: str) -> list[str]:
    """What a file in the part `part` (a sub-package or module of hf_vitmae) wrongly imports."""
    complaints = []
    for name in imported_modules(ast.parse(source), package):
        top, _, rest = name.partition(".")
        imported = rest.split(".")[0]
        if top != "hf_vitmae" or imported in ("", "__version__"):
            continue  # `import hf_vitmae` registers the models, no more
        if not is_allowed(part, imported, PACKAGE_LAYERS):
            complaints.append(f"{part} must not import {name}")
    return complaints


def model_complaints(source: str, module: str) -> list[str]:
    """What a file of models/ wrongly imports from its neighbours."""
    imported = {name.split(".")[2] for name in own_imports(source)}
    if module == "image_processing_vitmae":
        allowed = {"patches", "pictures", "resizing", "segmentation_maps"}
        return [f"{module} must not import {name}" for name in sorted(imported - allowed)]
    wrong = {name for name in imported if not is_allowed(module, name, MODEL_LAYERS)}
    return [f"{module} must not import {name}" for name in sorted(wrong)]


def own_imports(source: str) -> list[str]:
    names = imported_modules(ast.parse(source), "hf_vitmae.models")
    return [name for name in names if name.startswith("hf_vitmae.models.")]


def payload_complaints(source: str, neighbours: Iterable[str]) -> list[str]:
    """Imports that break a checkpoint's folder of code: as text, since docstrings count as well."""
    complaints = []
    for module in re.findall(r"^\s*from\s+(\.\S*)\s+import", source, flags=re.MULTILINE):
        if module.removeprefix(".") not in neighbours:
            complaints.append(f"from {module} import")
    complaints += re.findall(r"^\s*import\s+\.\S*", source, flags=re.MULTILINE)
    for name in unguarded_imports(ast.parse(source)):
        if name not in PAYLOAD_LIBRARIES:
            complaints.append(f"import {name}")
    return complaints


def unguarded_imports(node: ast.AST) -> Iterator[str]:
    """Top-level names of absolute imports that no `try` surrounds."""
    if isinstance(node, ast.Try):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.split(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from unguarded_imports(child)


def pretrained_classes(sources: Mapping[str, str]) -> set[tuple[str, str]]:
    """(file, class) of every subclass of PreTrainedModel, direct or through another class."""
    classes = {
        (file, node.name): {ast.unparse(base).split(".")[-1] for base in node.bases}
        for file, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }
    known: set[str] = {"PreTrainedModel"}
    while True:
        found = {(file, name) for (file, name), bases in classes.items() if bases & known}
        if {name for _, name in found} <= known:
            return found
        known |= {name for _, name in found}


def size_complaints(
    source: str, max_function: int = MAX_FUNCTION_LINES, max_file: int = MAX_FILE_LINES
) -> list[str]:
    """Files and functions that are too long to read in one go."""
    num_lines = len(source.splitlines())
    complaints = [f"{num_lines} lines"] if num_lines > max_file else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > max_function:
                complaints.append(f"{node.name} has {length} lines")
    return complaints


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(SOURCE)))
class TestEveryFile:
    def test_imports_go_one_way(self, file):
        *folders, name = file.relative_to(SOURCE).with_suffix("").parts
        part = (*folders, name)[0]
        if part in FACES:
            return
        package = ".".join(["hf_vitmae", *folders])
        assert layer_of(part, PACKAGE_LAYERS) is not None, f"{part} has no place in the layout"
        assert package_complaints(file.read_text(), part, package) == []

    def test_sizes(self, file):
        name = file.relative_to(SOURCE).as_posix()
        max_function = MAX_LOOP_LINES if name == "training/loop.py" else MAX_FUNCTION_LINES
        is_modeling = name == "models/modeling_vitmae.py"
        max_file = MAX_MODELING_LINES if is_modeling else MAX_FILE_LINES
        assert size_complaints(file.read_text(), max_function, max_file) == []


@pytest.mark.parametrize("file", source_files(MODELS), ids=lambda file: file.stem)
class TestEveryModelFile:
    def test_payload_stands_alone(self, file):
        neighbours = {other.stem for other in source_files(MODELS)}
        assert payload_complaints(file.read_text(), neighbours) == []

    def test_models_import_one_way(self, file):
        if file.stem in FACES:
            return
        assert model_complaints(file.read_text(), file.stem) == []


def test_models_are_flat():
    assert source_files(MODELS) == sorted(MODELS.glob("*.py"))


def test_pretrained_classes_live_in_one_file():
    sources = {file.relative_to(SOURCE).as_posix(): file.read_text() for file in source_files()}
    found = pretrained_classes(sources)
    assert {file for file, _ in found} == {"models/modeling_vitmae.py"}


def test_import_is_light():
    """Beyond what transformers' own base class brings, `import hf_vitmae` loads nothing heavy."""
    script = (
        "import sys; from transformers import PreTrainedModel; before = set(sys.modules);"
        f"import hf_vitmae; print(*(set({HEAVY_LIBRARIES}) & set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("part", "package", "statement", "is_good"),
    [
        ("tasks", "hf_vitmae.tasks", "from hf_vitmae.training.loop import train", True),
        ("tasks", "hf_vitmae.tasks", "from .recipe import Recipe", True),
        ("tasks", "hf_vitmae.tasks", "from ..data import sources", True),
        ("hub", "hf_vitmae.hub", "from hf_vitmae import __version__", True),
        ("tasks", "hf_vitmae.tasks", "import hf_vitmae", True),
        ("data", "hf_vitmae.data", "from hf_vitmae.training.loop import train", False),
        ("data", "hf_vitmae.data", "from ..training import loop", False),
        ("data", "hf_vitmae.data", "from .. import training", False),
        ("data", "hf_vitmae.data", "import hf_vitmae.training.loop", False),
        ("data", "hf_vitmae.data", "def f():\n    from hf_vitmae.hub import card", False),
        ("hub", "hf_vitmae.hub.parts", "from ...tasks import pretrain", False),
        ("training", "hf_vitmae.training", "from hf_vitmae.data import loader", False),
        ("cli", "hf_vitmae", "from hf_vitmae import VitMaeModel", False),
        ("cli", "hf_vitmae", "from .tasks import pretrain", True),
    ],
)
def test_import_rule_can_fail(part, package, statement, is_good):
    assert (package_complaints(statement, part, package) == []) is is_good


@pytest.mark.parametrize(
    ("module", "statement", "is_good"),
    [
        ("embeddings", "from .patches import as_pair", True),
        ("modeling_vitmae", "from .decoder import VitMaeDecoder", True),
        ("image_processing_vitmae", "from .patches import patchify", True),
        ("layers", "from .embeddings import VitMaeEmbeddings", False),
        ("decoder", "from .encoder import VitMaeEncoder", False),
        ("masking", "from .patches import patchify", False),
        ("image_processing_vitmae", "from .masking import random_mask", False),
        ("layers", "from .attention import attend", False),
    ],
)
def test_model_import_rule_can_fail(module, statement, is_good):
    assert (model_complaints(statement, module) == []) is is_good


@pytest.mark.parametrize(
    ("source", "is_good"),
    [
        ("from .patches import patchify, unpatchify\nimport math, torch.nn", True),
        ("try:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None", True),
        ("from . import patches", False),
        ("from .sub.module import name", False),
        ("from ..data import sources", False),
        ("from .absent import name", False),
        ("from hf_vitmae.models.patches import patchify", False),
        ("import einops", False),
        ("def f():\n    from timm.layers import DropPath", False),
        ('"""As in\n\nfrom .elsewhere import name\n"""', False),
        ("if TYPE_CHECKING:\n    from .. import data", False),
    ],
)
def test_payload_rule_can_fail(source, is_good):
    assert (payload_complaints(source, {"patches", "layers"}) == []) is is_good


def test_pretrained_rule_follows_inheritance():
    sources = {
        "models/modeling_vitmae.py": "class Base(transformers.PreTrainedModel): ...",
        "tasks/extra.py": "class Probe(Base): ...\nclass Plain: ...",
    }
    assert ("tasks/extra.py", "Probe") in pretrained_classes(sources)
    assert len(pretrained_classes(sources)) == 2


def test_size_rule_can_fail():
    long_function = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert size_complaints(long_function) == [f"f has {MAX_FUNCTION_LINES + 1} lines"]
    assert size_complaints(long_function, MAX_LOOP_LINES) == []
    assert size_complaints("x = 1\n" * (MAX_FILE_LINES + 1)) == [f"{MAX_FILE_LINES + 1} lines"]
